# SPDX-License-Identifier: Apache-2.0
"""Whether an image file is whole and what its name says, found out before it is loaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from monai_attn.data.dicom import check_series
from monai_attn.data.nifti import NIFTI_SUFFIXES, check_nifti
from monai_attn.errors import DataError

__all__ = ["check_file"]

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_file(path: str | Path) -> None:
    """Raise unless a file can be loaded whole.

    A NIfTI file is read to its end, so that its checksum is verified (0.1 s for 240 × 240 × 155 voxels), and its header
    is held against its length before memory is taken; a folder is examined as a DICOM series. What other formats hold
    is left to their readers, which do notice when something is missing. A file that has been found whole is not
    examined again until it changes.

    Args:
        path: the image file, or a folder of DICOM files.

    Raises:
        DataError: if the file is missing, empty, damaged, not of the format that its name promises, or larger than the
            memory of the machine.

    Example:
        ``check_file("images/case_1.nii.gz")``
    """
    file = Path(path).expanduser()
    if file.is_dir():
        check_series(file)
        return
    try:
        status = file.stat()
        _check_content(str(file), status.st_size, status.st_mtime_ns)
    except FileNotFoundError as error:
        raise DataError(str(file), "there is no such file or folder", "correct the path") from error
    except PermissionError as error:
        raise DataError(str(file), "it may not be read (permission denied)", "change its permissions") from error


@cache
def _check_content(path: str, size: int, changed: int) -> None:
    """Check a file; ``changed``, its time of change, tells the cache one version of it from another."""
    if size == 0:
        raise DataError(path, "the file is empty (0 bytes)", "copy or download it again")
    with open(path, "rb") as file:
        if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise DataError(path, "it is a Git-LFS pointer, not the file that it points to", "run `git lfs pull`")
    if path.lower().endswith(NIFTI_SUFFIXES):
        check_nifti(path)
