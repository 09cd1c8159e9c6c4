# SPDX-License-Identifier: Apache-2.0
"""The compiled passes of scSE, ``native/scse_kernels.c``, where installation found a C compiler.

They are a plain shared library, which knows neither Python nor PyTorch. Nothing needs them:
:mod:`monai_attn.blocks.fast_max` computes the same without them. ``MONAI_ATTN_KERNELS=0`` in the environment leaves
them out.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch

__all__ = ["differentiate_input", "differentiate_maps", "excite", "has_kernels", "squeeze"]

_VERSION = 1  # that of the source
_POINTERS = {"scse_squeeze": 4, "scse_excite": 4, "scse_differentiate_maps": 6, "scse_differentiate_input": 10}


@cache
def _library() -> ctypes.CDLL | None:
    """The library, or None where there is none, it is of another version or machine, or is not wanted."""
    files = [Path(__file__).with_name("native") / f"_scse_kernels{suffix}" for suffix in EXTENSION_SUFFIXES]
    file = next((file for file in files if file.is_file()), None)
    if file is None or os.environ.get("MONAI_ATTN_KERNELS") == "0":
        return None
    try:
        library = ctypes.CDLL(str(file))
    except OSError:
        return None
    if library.scse_version() != _VERSION:
        return None
    for name, pointers in _POINTERS.items():
        getattr(library, name).argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * 4
    return library


def has_kernels() -> bool:
    """Whether the compiled passes are there. If so, they take contiguous tensors of float32 on the CPU."""
    return _library() is not None


def squeeze(u: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Channel means (B, C) and spatial logits (B, 1, *spatial), without bias, of ``u`` (B, C, *spatial)."""
    means, logits = u.new_empty(u.shape[:2]), u.new_empty(u.shape[0], 1, *u.shape[2:])
    _run("scse_squeeze", u, weight, means, logits)
    return means, logits


def excite(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
    """``max(u * channel, u * spatial)`` with the maps (B, C, 1, ...) and (B, 1, *spatial)."""
    y = torch.empty_like(u)
    _run("scse_excite", u, channel, spatial, y)
    return y


def differentiate_maps(
    u: torch.Tensor, grad: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of ``channel`` and ``spatial`` by the gradient of :func:`excite`."""
    gradients = torch.empty_like(channel), torch.empty_like(spatial)
    _run("scse_differentiate_maps", u, grad, channel, spatial, *gradients)
    return gradients


def differentiate_input(
    u: torch.Tensor,
    grad: torch.Tensor,
    channel: torch.Tensor,
    spatial: torch.Tensor,
    weight: torch.Tensor,
    grad_means: torch.Tensor,
    grad_logits: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of ``u``, ``weight`` and the bias by those of :func:`excite` and of both results of the squeeze."""
    gradients = torch.empty_like(u), torch.empty_like(weight), weight.new_empty(1)
    _run("scse_differentiate_input", u, grad, channel, spatial, weight, grad_means, grad_logits, *gradients)
    return gradients


def _run(name: str, u: torch.Tensor, *tensors: torch.Tensor) -> None:
    library = _library()
    if library is None:
        raise RuntimeError(f"{name} is not there: no compiled passes were found; ask has_kernels() first.")
    batch, channels, size = u.shape[0], u.shape[1], u[0, 0].numel()
    pointers = [tensor.data_ptr() for tensor in (u, *tensors)]
    if getattr(library, name)(*pointers, batch, channels, size, torch.get_num_threads()):
        raise MemoryError(f"no memory for the sums of {name} over {tuple(u.shape)}")
