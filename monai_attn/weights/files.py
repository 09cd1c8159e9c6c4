# SPDX-License-Identifier: Apache-2.0
"""PyTorch files: read only if they are whole, and without running anything that is in them."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from monai_attn.errors import DataError

__all__ = ["check_whole", "is_torchscript", "read_tensors"]

_LFS_POINTER = b"version https://git-lfs"
_FOLDER = 0x10  # in the attributes of an entry of a zip archive
_AGAIN = "copy or download it again"


def read_tensors(path: str | os.PathLike) -> Any:
    """Read a file that ``torch.save`` wrote, of tensors in plain containers.

    PyTorch itself takes a damaged file for good, as it compares no checksums.

    Args:
        path: the file.

    Returns:
        what was saved, on the CPU.

    Raises:
        DataError: if the file is missing, empty, a pointer of Git LFS, damaged or cut off, or if it holds other things
            than tensors, such as a whole network; nothing of it runs.

    Example:
        ``read_tensors("model.pt")["classifier.weight"]``
    """
    name = os.fspath(path)
    check_whole(name)
    if is_torchscript(name):
        raise DataError(name, "it is a network in TorchScript", "add configs/inference_exported.json, or give model.pt")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    except Exception:
        refused = None
    # torch's own error is left out, for it advises to read such files without this protection
    if refused:
        raise DataError(
            name,
            f"besides tensors it holds {refused[1]}, code that torch.load(weights_only=True) does not read or run",
            "get the state_dict alone: its author saves it by torch.save(network.state_dict(), file)",
        )
    raise DataError(name, "it is no file of plain tensors that torch.load(weights_only=True) reads", _AGAIN)


def is_torchscript(path: str | os.PathLike) -> bool:
    """Whether a file is a network that was exported to TorchScript, which brings its code along."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def check_whole(path: str | os.PathLike) -> None:
    """Look whether a file that PyTorch wrote is there and as it was written.

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
    if head.startswith(b"PK"):  # what torch.save writes is a zip archive
        try:
            with zipfile.ZipFile(name) as archive:
                # PyTorch skips an entry that is marked as a folder and returns what is in memory
                folders = [entry.filename for entry in archive.infolist() if entry.external_attr & _FOLDER]
                damaged = folders[0] if folders else archive.testzip()
        except Exception as error:  # whatever nonsense the archive's tables may say
            raise DataError(name, f"it is damaged or cut off ({type(error).__name__}: {error})", _AGAIN) from error
        if damaged:
            raise DataError(name, f"it is damaged: {damaged} is not what was written", _AGAIN)
