# SPDX-License-Identifier: Apache-2.0
"""What of a run is damaged or gone, as compared with the same run that nothing disturbed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image

from monai_attn.errors import DataError
from monai_attn.weights.files import read_tensors

DRAFT = ".partial-"


def names(folder: Path) -> set[str]:
    """The files of a run that must be whole whenever they are there: all but logs, and drafts that have no name yet."""
    found = {path.name for path in folder.glob("*")}
    return {name for name in found if not name.startswith((DRAFT, "events.out.")) and not name.endswith(".log")}


def drafts(folder: Path) -> set[str]:
    """What is being written, or was when a process was killed."""
    return {path.name for path in folder.glob(f"{DRAFT}*")}


def damaged(folder: Path, reference: Path) -> list[str]:
    """What is wrong at any moment, such as after a kill: files that are not whole, or not what they have to become.

    Args:
        folder: folder of a run, under way or not.
        reference: folder of a whole run.
    """
    found = []
    for name in sorted(names(folder)):
        if not (reference / name).exists():
            found.append(f"{name}: the undisturbed run has no such file")
            continue
        check = next(check for ending, check in _CHECKS.items() if name.endswith(ending))
        try:
            found += [f"{name}: {problem}" for problem in check(folder / name, reference / name)]
        except Exception as error:  # whatever a reader says to half a file
            found.append(f"{name}: {type(error).__name__}: {error}")
    return found


def lost(folder: Path, reference: Path) -> list[str]:
    """What is wrong once the run has ended.

    Args:
        folder: folder of a run that has ended.
        reference: folder of a whole run.
    """
    found = damaged(folder, reference)
    found += [f"{name}: it is missing" for name in sorted(names(reference) - names(folder))]
    found += [f"{name}: it is left over" for name in sorted(drafts(folder))]
    if not found:  # what follows needs whole files
        for name in sorted(names(reference)):
            check = next(check for ending, check in _CHECKS_AT_THE_END.items() if name.endswith(ending))
            found += [f"{name}: {problem}" for problem in check(folder / name, reference / name)]
    return found


def _loads(path: Path, _reference: Path) -> Iterator[str]:
    try:
        read_tensors(path)
    except DataError as error:
        yield error.problem


def _parses(path: Path, _reference: Path) -> Iterator[str]:
    json.loads(path.read_text())
    yield from ()


def _is_part(path: Path, reference: Path) -> Iterator[str]:
    """A table of which more and more rows are there."""
    rows, whole = path.read_text(), reference.read_text().splitlines(keepends=True)
    if not rows.startswith(whole[0]):
        yield "the first row is not that of the undisturbed run"
    yield from (f"no row of the undisturbed run: {row!r}" for row in rows.splitlines(True) if row not in whole)


def _is_result(path: Path, reference: Path) -> Iterator[str]:
    with gzip.open(path) as file:  # to the end, where the checksum is; nibabel does not go there
        while file.read(1 << 20):
            pass
    image, other = nibabel.load(path), nibabel.load(reference)
    if image.get_data_dtype() != other.get_data_dtype() or image.shape != other.shape:
        yield f"{image.shape} of {image.get_data_dtype()}, not {other.shape} of {other.get_data_dtype()}"
    elif not np.array_equal(image.affine, other.affine):
        yield "it lies elsewhere"
    elif not np.array_equal(image.dataobj, other.dataobj):
        yield f"{np.count_nonzero(np.asarray(image.dataobj) != np.asarray(other.dataobj))} voxels differ"


def _is_picture(path: Path, _reference: Path) -> Iterator[str]:
    with Image.open(path) as image:
        image.load()
    yield from ()


def _equal_tensors(path: Path, reference: Path) -> Iterator[str]:
    if not _equal(read_tensors(path), read_tensors(reference)):
        yield "its tensors or numbers differ"


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(value, other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_equal(value[key], other[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(_equal, value, other))
    return value == other


def _equal_bytes(path: Path, reference: Path) -> Iterator[str]:
    if path.read_bytes() != reference.read_bytes():
        yield "it is not that of the undisturbed run"


def _is_manifest(path: Path, reference: Path) -> Iterator[str]:
    manifest, other = (json.loads(file.read_text()) for file in (path, reference))
    for entry in ("state", "best", "results"):
        if manifest.get(entry) != other.get(entry):
            yield f"{entry} is {manifest.get(entry)}, not {other.get(entry)}"


_CHECKS: dict[str, Callable[[Path, Path], Iterator[str]]] = {
    ".pt": _loads,
    ".json": _parses,
    ".csv": _is_part,
    ".nii.gz": _is_result,
    ".png": _is_picture,
}
_CHECKS_AT_THE_END = {
    ".pt": _equal_tensors,
    ".json": _is_manifest,
    ".csv": _equal_bytes,
    ".nii.gz": _is_result,
    ".png": _equal_bytes,
}
