# SPDX-License-Identifier: Apache-2.0
"""Check the geometry of NIfTI files and DICOM series."""

from __future__ import annotations

import gzip
import logging
import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import nibabel
import numpy as np
from monai.utils import optional_import

from monai_attn.errors import DataError

__all__ = ["NIFTI_SUFFIXES", "check_nifti", "check_series", "describe_affine", "read_header", "warn_if_corrected"]


itk, _ = optional_import("itk", allow_namespace_pkg=True)

_CLASS_TAG = b"\x02\x00\x02\x00UI"  # (0002,0002), the kind of object
_STEP_TOLERANCE = 0.1  # of the usual distance of slices


class _Slice(NamedTuple):
    """DICOM slice; its position is along the normal, in mm."""

    file: Path
    position: float
    series: str
    description: str


def check_series(folder: Path) -> None:
    """Check that a folder is one DICOM series without gaps.

    Subfolders and other files are ignored.

    Raises:
        DataError: if there is no series or more than one, if a slice cannot be read, or if slices are missing,
            doubled or unevenly spaced.

    Example:
        ``check_series(Path("scans/patient_1"))``
    """
    names = itk.GDCMSeriesFileNames.New()  # tells series apart as MONAI's ITKReader does
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(str(folder))
    series = [[_read_slice(Path(name)) for name in names.GetFileNames(uid)] for uid in names.GetSeriesUIDs()]
    if not series:
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise DataError(str(folder), f"no DICOM image in it can be read; it holds: {present}", "give another folder")
    _check_readable(folder, {slice_.file for slices in series for slice_ in slices})
    if len(series) > 1:
        listed = "; ".join(
            f"{first.series} ({first.description or 'no description'}: {1 + len(others)} files, {first.file.name} …)"
            for first, *others in series
        )
        raise DataError(
            str(folder), f"it holds {len(series)} DICOM series: {listed}", "move the files of one into their own folder"
        )
    _check_positions(folder, sorted(slice_.position for slice_ in series[0]))


def _read_slice(file: Path) -> _Slice:
    reader = itk.GDCMImageIO.New()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    position = np.dot(reader.GetDirection(2), [reader.GetOrigin(axis) for axis in range(3)])
    tags = reader.GetMetaDataDictionary()
    return _Slice(file, float(position), _tag(tags, "0020|000e"), _tag(tags, "0008|103e"))


def _tag(tags: Any, name: str) -> str:
    return str(tags[name]).strip("\0 ") if tags.HasKey(name) else ""


def _check_readable(folder: Path, read: set[Path]) -> None:
    """Raise if a file of the same kind of image as the slices was not read."""
    kinds = {_object_class(file) for file in read} - {None}
    lost = sorted(file.name for file in folder.iterdir() if file not in read and _object_class(file) in kinds)
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise DataError(
            str(folder / lost[0]), f"this slice{more} of the series is damaged or cut off", "copy or export it again"
        )


def _object_class(file: Path) -> bytes | None:
    """Return the SOP class UID of a DICOM file, or None for other files."""
    if not file.is_file():
        return None
    with file.open("rb") as content:
        head = content.read(1024)
    _, found, rest = head.partition(_CLASS_TAG)
    if head[128:132] != b"DICM" or not found:
        return None
    length = int.from_bytes(rest[:2], "little")
    return rest[2 : 2 + length].rstrip(b"\0 ")


def _check_positions(folder: Path, positions: list[float]) -> None:
    """Raise unless slices are evenly spaced."""
    steps = np.diff(positions)
    apart = steps[steps > 0]
    usual = float(np.median(apart)) if len(apart) else 0.0
    (odd,) = np.nonzero((np.abs(steps - usual) > _STEP_TOLERANCE * usual) | (steps <= 0))
    if not len(odd):
        return
    below, above, step = positions[odd[0]], positions[odd[0] + 1], steps[odd[0]]
    if step <= _STEP_TOLERANCE * usual:
        problem = f"two slices lie at {below:.2f} mm"
    elif (missing := round(step / usual) - 1) > 0:
        problem = f"{missing} missing between the slices at {below:.2f} and {above:.2f} mm"
    else:
        problem = f"the slices at {below:.2f} and {above:.2f} mm are {step:.2f} mm apart"
    more = f" (and {len(odd) - 1} more such places)" if len(odd) > 1 else ""
    raise DataError(
        str(folder),
        f"its slices are not evenly spaced, every {usual:.2f} mm: {problem}{more}",
        "export the series again, or take the odd slices away",
    )


NIFTI_SUFFIXES = (".nii", ".nii.gz")
_AGAIN = "copy, download or export it again"
_LOGGER = logging.getLogger(__name__)


def check_nifti(path: str) -> None:
    """Check a NIfTI file: undamaged, real-valued, fits in memory.

    Raises:
        DataError: if not, before memory is allocated for the voxels.
    """
    with open(path, "rb") as file:
        begin = file.read(nibabel.Nifti2Header.sizeof_hdr)
    compressed = begin.startswith(b"\x1f\x8b")
    if compressed and not path.lower().endswith(".gz"):
        raise DataError(path, "it is compressed by gzip, but its name does not end in .gz", f"rename it to {path}.gz")
    if not compressed and path.lower().endswith(".gz"):
        if _header_class(begin):
            raise DataError(path, "it is NIfTI, but not compressed by gzip", f"rename it to {path[:-3]}")
        raise DataError(path, f"it is neither gzip nor NIfTI; it begins with {_quote(begin)}", _AGAIN)
    try:
        end = _check_header(path, read_header(path))
        with _open(path) as file:
            held = file.seek(0, os.SEEK_END)  # reading gzip to its end verifies its checksum
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(path, f"it is damaged: {str(error).rstrip('.')}", _AGAIN) from error
    if held < end:
        raise DataError(path, f"it is cut off: its header promises {end:,} bytes, it holds {held:,}", _AGAIN)


def read_header(path: str) -> nibabel.Nifti1Header:
    """Read the uncorrected header of a NIfTI-1 or NIfTI-2 file.

    Raises:
        DataError: if it is no such header.
    """
    with _open(path) as file:
        block = file.read(nibabel.Nifti2Header.sizeof_hdr)
    header_class = _header_class(block)
    if header_class is None:
        raise DataError(path, f"its content is not NIfTI; it begins with {_quote(block)}", _AGAIN)
    return header_class(block[: header_class.sizeof_hdr], check=False)


def warn_if_corrected(path: str, used: np.ndarray) -> None:
    """Warn if the affine used is not the header's.

    nibabel and MONAI replace it where spacing (pixdim), qform and sform contradict each other, or are not finite.
    """
    header = read_header(path)
    with np.errstate(all="ignore"):
        claimed = header.get_best_affine()
    if not np.allclose(claimed, used, rtol=1e-3, atol=1e-3):
        _LOGGER.warning(
            "%s: its header contradicts itself (pixdim %s, qform_code %d, sform_code %d with rows %s); used: %s",
            path,
            header["pixdim"][1:4].round(4).tolist(),
            header["qform_code"],
            header["sform_code"],
            header.get_sform()[:3].round(4).tolist(),
            describe_affine(used),
        )


def describe_affine(affine: np.ndarray) -> str:
    """Describe spacing, axes and origin of an affine.

    Example:
        >>> import numpy
        >>> describe_affine(numpy.diag([-1, 1, 2.5, 1]))
        'spacing 1 x 1 x 2.5 mm, axes LAS, origin (0, 0, 0)'
    """
    rank = len(affine) - 1
    spacing = " x ".join(f"{size:.4g}" for size in np.linalg.norm(affine[:rank, :rank], axis=0))
    singular = not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) <= rank
    axes = "" if singular or rank != 3 else f", axes {''.join(nibabel.aff2axcodes(affine))}"
    origin = ", ".join(f"{value:.4g}" for value in affine[:rank, rank])
    return f"spacing {spacing} mm{axes}, origin ({origin})"


def _check_header(path: str, header: nibabel.Nifti1Header) -> int:
    """Raise if a header is invalid; return where the voxels should end in the file."""
    try:
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
    except (nibabel.spatialimages.HeaderDataError, KeyError) as error:
        raise DataError(path, f"its header cannot be right: {error}", _AGAIN) from error
    size = " x ".join(map(str, shape))
    voxels = math.prod(map(int, shape))
    if min(shape) < 1:
        raise DataError(path, f"its header gives it the size {size}", _AGAIN)
    if dtype.fields:
        raise DataError(path, "its voxels are colors (RGB)", "save it as PNG, or one number for each voxel")
    if dtype.kind not in "iuf":
        raise DataError(path, f"its voxels are {dtype.name} numbers", "save the magnitude, or what you need of them")
    needed, memory = 4 * voxels / 2**30, _memory() / 2**30
    if needed > memory:
        raise DataError(
            path,
            f"its header gives it the size {size}: {needed:,.0f} GB, and this machine has {memory:,.0f} GB of memory",
            "correct the header, or cut or resample the image",
        )
    return int(header.get_data_offset()) + voxels * dtype.itemsize


def _header_class(block: bytes) -> type[nibabel.Nifti1Header] | None:
    classes = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    return next((header_class for header_class in classes if header_class.may_contain_header(block)), None)


def _open(path: str) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb"))


def _memory() -> float:
    """Return this machine's memory in bytes, infinite if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _quote(begin: bytes) -> str:
    return repr(begin[:16])[1:]
