# SPDX-License-Identifier: Apache-2.0
"""Checks of DICOM series.

ITK takes the first of several series, drops slices that it cannot read and spreads the others over the gaps; all it
says is a line of its own on stderr.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.utils import optional_import

from monai_attn.errors import DataError

__all__ = ["check_series"]

itk, _ = optional_import("itk", allow_namespace_pkg=True)

_CLASS_TAG = b"\x02\x00\x02\x00UI"  # (0002,0002), the kind of object
_STEP_TOLERANCE = 0.1  # of the usual distance of slices


class _Slice(NamedTuple):
    """A slice: its file, its position along the normal in mm, its series and the description of that."""

    file: Path
    position: float
    series: str
    description: str


def check_series(folder: Path) -> None:
    """Raise unless the DICOM files of a folder are one series without gaps; other files do not matter.

    Args:
        folder: folder of the series, not searched deeper.

    Raises:
        DataError: if there is no series or more than one, if a slice cannot be read, or if slices are missing,
            doubled or unevenly spaced; with the files or positions.

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
    """Raise if a file says that it is the same kind of image as the slices, but was not read."""
    kinds = {_object_class(file) for file in read} - {None}
    lost = sorted(file.name for file in folder.iterdir() if file not in read and _object_class(file) in kinds)
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise DataError(
            str(folder / lost[0]), f"this slice{more} of the series is damaged or cut off", "copy or export it again"
        )


def _object_class(file: Path) -> bytes | None:
    """The SOP class UID in the head of a DICOM file; None if the file is no DICOM."""
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
