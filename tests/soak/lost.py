# SPDX-License-Identifier: Apache-2.0
"""What of a run is damaged or gone, as compared with the same run that nothing disturbed."""

import gzip
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from PIL import Image

from monai_attn.weights.checkpoint import read_tensors

DRAFT = ".partial-"
ENTRIES = ("state", "best", "results", "case", "values", "warnings")  # of manifests, and of what is known of a case


def names(folder: Path) -> set[str]:
    """Return the files that must be whole whenever they are there: all but logs, and drafts that have no name yet."""
    found = [path for path in folder.rglob("*") if path.suffix != ".log" and path != folder / "cases"]
    return {str(path.relative_to(folder)) for path in found if not path.name.startswith((DRAFT, "events.out."))}


def drafts(folder: Path) -> set[str]:
    """Return what is being written, or was when a process was killed."""
    return {str(path.relative_to(folder)) for path in folder.rglob(f"{DRAFT}*")}


def damaged(folder: Path, reference: Path, at_end: bool = False) -> list[str]:
    """Return the files of a run that are not whole, or not what they have to become, or at its end have to be."""
    found = []
    for name in sorted(names(folder)):
        try:
            _check(folder / name, reference / name, at_end)
        except Exception as error:  # whatever a reader says to half a file
            found.append(f"{name}: {type(error).__name__}: {error}")
    return found


def lost(folder: Path, reference: Path) -> list[str]:
    """Return what is wrong with a run that has ended."""
    found = damaged(folder, reference, at_end=True)
    found += [f"{name}: it is missing" for name in sorted(names(reference) - names(folder))]
    return found + [f"{name}: it is left over" for name in sorted(drafts(folder))]


def _check(path: Path, reference: Path, at_end: bool) -> None:
    if not reference.exists():
        raise ValueError("the undisturbed run has no such file")
    if path.suffix == ".pt":
        state = read_tensors(path)
        same = not at_end or _equal(state, read_tensors(reference))
    elif path.suffix == ".json":
        manifest, other = json.loads(path.read_text()), json.loads(reference.read_text())
        same = not at_end or all(manifest.get(entry) == other.get(entry) for entry in ENTRIES)
    elif path.suffix == ".csv":  # a table of which more and more rows are there
        rows, whole = path.read_text().splitlines(True), reference.read_text().splitlines(True)
        same = rows == whole if at_end else rows[:1] == whole[:1] and set(rows) <= set(whole)
    elif path.suffix == ".html":  # a page with a row for each case
        rows, whole = (file.read_text().count("<tr><th") for file in (path, reference))
        same = path.read_text().endswith("</html>\n") and (rows == whole if at_end else rows <= whole)
    elif path.suffix == ".png":
        pixels, other = (np.asarray(Image.open(file), dtype=int) for file in (path, reference))
        # the layout of matplotlib may move a letter by a part of a pixel
        same = pixels.shape == other.shape and np.abs(pixels - other).mean() < 0.1 if at_end else True
    else:
        with gzip.open(path) as file:  # to the end, where the checksum is; nibabel does not go there
            while file.read(1 << 20):
                pass
        image, other = nibabel.load(path), nibabel.load(reference)
        same = image.get_data_dtype() == other.get_data_dtype() and np.array_equal(image.affine, other.affine)
        same = same and np.array_equal(image.dataobj, other.dataobj)
    if not same:
        raise ValueError("it is not that of the undisturbed run")


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(value, other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(_equal(value[key], other[key]) for key in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(other) and all(map(_equal, value, other))
    return value == other
