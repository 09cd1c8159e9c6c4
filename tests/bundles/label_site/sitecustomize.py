# SPDX-License-Identifier: Apache-2.0
"""On the path of MONAI Label's server in the tests: torchvision of PyPI, built for CUDA, beside a torch for the CPU.

MONAI Label imports torchvision, but needs nothing of it that is compiled. Without CUDA that cannot be loaded, and
torchvision then stumbles over the names of two operators that are missing.
"""

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:  # operator torchvision::nms does not exist
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
except ImportError:
    pass
