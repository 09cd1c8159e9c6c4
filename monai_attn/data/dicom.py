# SPDX-License-Identifier: Apache-2.0
"""Whether a folder is one whole DICOM series.

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

_PREAMBLE = 128
_CLASS_TAG = b"\x02\x00\x02\x00UI"  # (0002,0002), the kind of object
_STEP_TOLERANCE = 0.1  # of the usual distance of slices


class _Slice(NamedTuple):
    """A slice: its file, its position along the normal in mm, its series and what that calls itself."""

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
    series = _find_series(folder)
    if not series:
        present = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        raise DataError(str(folder), f"no DICOM image in it can be read; it holds: {present}", "give another folder")
    _check_readable(folder, {slice_.file for slices in series for slice_ in slices})
    if len(series) > 1:
        listed = "; ".join(
            f"{slices[0].series} ({slices[0].description or 'no description'}: {len(slices)} files, "
            f"{slices[0].file.name} …)"
            for slices in series
        )
        raise DataError(
            str(folder), f"it holds {len(series)} DICOM series: {listed}", "move the files of one into their own folder"
        )
    _check_positions(folder, sorted(slice_.position for slice_ in series[0]))


def _find_series(folder: Path) -> list[list[_Slice]]:
    """The slices of each series, told apart as MONAI's ``ITKReader`` does it."""
    names = itk.GDCMSeriesFileNames.New()
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(str(folder))
    return [[_read_slice(Path(name)) for name in names.GetFileNames(uid)] for uid in names.GetSeriesUIDs()]


def _read_slice(file: Path) -> _Slice:
    reader = itk.GDCMImageIO.New()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    normal, origin = (np.array(values) for values in (reader.GetDirection(2), [reader.GetOrigin(i) for i in range(3)]))
    tags = reader.GetMetaDataDictionary()
    return _Slice(file, float(origin @ normal), _tag(tags, "0020|000e"), _tag(tags, "0008|103e"))


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
    at = head.find(_CLASS_TAG)
    if head[_PREAMBLE : _PREAMBLE + 4] != b"DICM" or at < 0:
        return None
    begin = at + len(_CLASS_TAG) + 2
    return head[begin : begin + int.from_bytes(head[begin - 2 : begin], "little")].rstrip(b"\0 ")


def _check_positions(folder: Path, positions: list[float]) -> None:
    steps = np.diff(positions)
    if not len(steps):
        return
    usual = float(np.median(steps))
    odd = np.flatnonzero(np.abs(steps - usual) > _STEP_TOLERANCE * usual) if usual > 0 else np.flatnonzero(steps <= 0)
    if not len(odd):
        return
    below, above, step = positions[odd[0]], positions[odd[0] + 1], steps[odd[0]]
    missing = round(step / usual) - 1 if usual > 0 else 0
    if step <= _STEP_TOLERANCE * usual:
        problem = f"two slices lie at {below:.2f} mm"
    elif missing > 0:
        problem = f"{missing} missing between the slices at {below:.2f} and {above:.2f} mm"
    else:
        problem = f"the slices at {below:.2f} and {above:.2f} mm are {step:.2f} mm apart"
    more = f" (and {len(odd) - 1} more such places)" if len(odd) > 1 else ""
    raise DataError(
        str(folder),
        f"its slices are not evenly spaced, every {usual:.2f} mm: {problem}{more}",
        "export the series again, or take the odd slices away",
    )
