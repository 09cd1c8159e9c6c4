# SPDX-License-Identifier: Apache-2.0
"""Read PyTorch files that are whole, without running code from them."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_attn.errors import DataError

__all__ = ["check_whole", "load_exported", "read_tensors"]

_LFS_POINTER = b"version https://git-lfs"
_FOLDER = 0x10  # in the attributes of an entry of a zip archive
_AGAIN = "copy or download it again"


def read_tensors(path: str | os.PathLike) -> Any:
    """Read tensors in plain containers that ``torch.save`` wrote.

    PyTorch itself accepts a damaged file, as it verifies no checksums.

    Args:
        path: the file.

    Returns:
        what was saved, on the CPU.

    Raises:
        DataError: if the file is missing, empty, a pointer of Git LFS, damaged or cut off, or if it holds other things
            than tensors, such as a whole network; no code of it runs.

    Example:
        ``read_tensors("model.pt")["classifier.weight"]``
    """
    name = os.fspath(path)
    if any("/code/" in entry for entry in check_whole(name)):
        raise DataError(name, "it is a network in TorchScript", "add configs/inference_exported.json, or give model.pt")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
    # torch's own error is left out, for it advises to read such files without this protection
    if found:
        raise DataError(
            name,
            f"it holds the Python object {found[1]}, which could run code; expected is a state dict, as "
            "torch.load(weights_only=True) reads it",
            "ask its author for the state_dict alone, or convert it in a container as docs/scse.md shows",
        )
    raise DataError(name, "it is no file of plain tensors that torch.load(weights_only=True) reads", _AGAIN)


def load_exported(path: str | os.PathLike, device: torch.device | str = "cpu") -> nn.Module:
    """Load a TorchScript network that ``monai.bundle ckpt_export`` wrote.

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
        fix = "export one by `python -m monai.bundle ckpt_export`"
        raise DataError(os.fspath(path), "it is no network in TorchScript", fix) from error


def check_whole(path: str | os.PathLike) -> list[str]:
    """Check that a PyTorch file is present and undamaged.

    Returns:
        the names of its entries, if it is a zip archive, as ``torch.save`` and ``torch.jit.save`` write.

    Raises:
        DataError: if it is missing, empty, a pointer of Git LFS, damaged or cut off.
    """
    name = os.fspath(path)
    if not Path(name).is_file():
        raise DataError(name, "there is no such file", "correct the path, train first, or get the published weights")
    with open(name, "rb") as file:
        head = file.read(len(_LFS_POINTER))
    if not head:
        raise DataError(name, "it is empty", _AGAIN)
    if head == _LFS_POINTER:
        raise DataError(name, "it is a pointer of Git LFS, not the file itself", "run `git lfs pull` where it lies")
    if not head.startswith(b"PK"):
        return []
    try:
        with zipfile.ZipFile(name) as archive:
            # PyTorch skips an entry that is marked as a folder and returns what is in memory
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & _FOLDER]
            damaged = folders[0] if folders else archive.testzip()
    except Exception as error:  # whatever nonsense the archive's tables may say
        raise DataError(name, f"it is damaged or cut off ({type(error).__name__}: {error})", _AGAIN) from error
    if damaged:
        raise DataError(name, f"it is damaged: {damaged} is not what was written", _AGAIN)
    return archive.namelist()
