# SPDX-License-Identifier: Apache-2.0
"""What setup.cfg cannot say: the compiled passes of scSE. Nothing needs them; without a compiler there is a warning."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "monai_attn.blocks.native._scse_kernels",
            ["monai_attn/blocks/native/scse_kernels.c"],
            extra_compile_args=["-O3", "-fopenmp-simd", "-fno-trapping-math", "-pthread"],
            extra_link_args=["-pthread"],
            py_limited_api=True,  # it knows nothing of Python at all
            optional=True,
        )
    ]
)
