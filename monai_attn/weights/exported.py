# SPDX-License-Identifier: Apache-2.0
"""Networks that were exported to TorchScript, which run without the code that they were built with."""

from __future__ import annotations

import os

import torch
from torch import nn

from monai_attn.errors import DataError
from monai_attn.weights.files import check_whole

__all__ = ["load_exported"]


def load_exported(path: str | os.PathLike, device: torch.device | str = "cpu") -> nn.Module:
    """Read a network that ``monai.bundle ckpt_export`` wrote.

    Such a file is a program: run only those that you made, or whose author you trust.

    Args:
        path: the file, ``model.ts``.
        device: where the network is to run.

    Raises:
        DataError: if the file is missing, empty, damaged, or no network in TorchScript.

    Example:
        ``load_exported("models/model.ts")(images)``
    """
    check_whole(path)
    try:
        return torch.jit.load(os.fspath(path), map_location=device).eval()
    except RuntimeError as error:
        raise DataError(
            os.fspath(path), "it is no network in TorchScript", "make one by `python -m monai.bundle ckpt_export`"
        ) from error
