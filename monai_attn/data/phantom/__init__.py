# SPDX-License-Identifier: Apache-2.0
"""Look-alike data sets: the folder layout, modality, labels and spacing of a bundle's real data, and made-up anatomy.

They let a bundle run from end to end where the real data are not (yet) at hand. They are harder than trivial (shape
and place vary, contrast is low, scanners add blur, noise and shading), but nothing learnt from them holds for patients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImage
from monai.utils import convert_to_numpy, convert_to_tensor

from monai_attn.data.phantom import abdomen, brain, hippocampus, retina
from monai_attn.errors import ConfigError, DataError

__all__ = ["PHANTOMS", "Phantom", "make_phantom"]

_VALIDATION_FRACTION = 0.2
_WRITERS = {".nii.gz": "NibabelWriter", ".png": "PILWriter"}


class Phantom(NamedTuple):
    """What a look-alike data set consists of.

    Args:
        draw: makes the scans of a subject from a random state, each an image and a label (1, *spatial) in the types
            that they are stored in.
        labels: names of the label values 0, 1, …
        modality: modality, as in ``dataset.json``.
        spacing: voxel size in mm; 1 for pictures, which have none.
        suffix: ending of the files, ``".nii.gz"`` or ``".png"``.
        scans: number of scans of a subject.
        name: name of a case, with the fields ``subject`` and ``scan`` counted from 0, and ``number`` from 1.
    """

    draw: Callable[[np.random.RandomState], Iterator[tuple[torch.Tensor, torch.Tensor]]]
    labels: tuple[str, ...]
    modality: str
    spacing: tuple[float, ...]
    suffix: str = ".nii.gz"
    scans: int = 1
    name: str = "phantom_{subject:03d}"


def make_phantom(bundle: str, folder: str | Path, cases: int = 20, seed: int = 0) -> Path:
    """Write a look-alike of a bundle's data set.

    Args:
        bundle: name of the bundle, a key of ``PHANTOMS``.
        folder: folder to make; an existing ``dataset.json`` in it is not overwritten.
        cases: number of images, of at least 2 subjects; the last fifth of the subjects is for validation.
        seed: seed of the anatomy, from 0.

    Returns:
        the folder.

    Raises:
        ConfigError: if the bundle is unknown, there are too few cases or the seed is negative.
        DataError: if the folder holds a data set or cannot be written.

    Example:
        ``make_phantom("hippocampus_mri_scse_segmentation", "data/phantom", cases=20)``
    """
    if bundle not in PHANTOMS:
        raise ConfigError(f"bundle '{bundle}'", "there is no phantom of it", f"give one of {', '.join(PHANTOMS)}")
    phantom = PHANTOMS[bundle]
    if cases <= phantom.scans:
        raise ConfigError(
            f"cases={cases}",
            "one subject is to train and one to validate"
            + (f", with {phantom.scans} scans each" if phantom.scans > 1 else ""),
            f"give at least {phantom.scans + 1}",
        )
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}", "it is not between 0 and 2**32 - 1", "give another")
    folder = Path(folder)
    listing = folder / "dataset.json"
    try:
        if listing.exists():
            raise DataError(str(folder), "it holds a data set already", "give another folder")
        subjects = _write_subjects(phantom, folder, cases, seed)
        held_out = max(1, round(_VALIDATION_FRACTION * len(subjects)))
        content = {
            "name": f"phantom of {bundle}",
            "description": "made-up anatomy, for trying the software only",
            "modality": {"0": phantom.modality},
            "labels": {str(value): name for value, name in enumerate(phantom.labels)},
            "training": list(chain.from_iterable(subjects[:-held_out])),
            "validation": list(chain.from_iterable(subjects[-held_out:])),
        }
        listing.write_text(json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise DataError(str(folder), f"it cannot be written: {error}", "give a folder on a disk with space") from error
    return folder


def _write_subjects(phantom: Phantom, folder: Path, cases: int, seed: int) -> list[list[dict[str, str]]]:
    """Write the scans of as many subjects as make up the cases; returns the entries of each subject."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    subjects = []
    for subject, first in enumerate(range(0, cases, phantom.scans)):
        items = []
        scans = phantom.draw(np.random.RandomState([seed, subject]))
        for scan, pair in zip(range(min(phantom.scans, cases - first)), scans):
            name = phantom.name.format(subject=subject, number=subject + 1, scan=scan)
            item = {kind: f"{kind}s/{name}{phantom.suffix}" for kind in ("image", "label")}
            for file, volume in zip(item.values(), pair):
                _write(volume, phantom, str(folder / file).removesuffix(phantom.suffix))
            items.append(item)
        subjects.append(items)
    return subjects


def _write(volume: torch.Tensor, phantom: Phantom, path: str) -> None:
    affine = torch.diag(torch.tensor([*phantom.spacing, 1.0], dtype=torch.float64))
    image = MetaTensor(convert_to_tensor(volume, track_meta=False), affine=affine)
    SaveImage(
        output_ext=phantom.suffix,
        output_dtype=convert_to_numpy(volume).dtype,
        writer=_WRITERS[phantom.suffix],
        resample=False,
        print_log=False,
    )(image, filename=path)


PHANTOMS = {
    "hippocampus_mri_scse_segmentation": Phantom(hippocampus.draw, hippocampus.LABELS, "MRI", (1.0, 1.0, 1.0)),
    "brain_mri_scse_segmentation": Phantom(brain.draw, brain.LABELS, "MRI", (1.0, 1.0, 1.0)),
    "whole_body_ct_scse_segmentation": Phantom(abdomen.draw, abdomen.LABELS, "CT", (2.0, 2.0, 2.0)),
    "retinal_oct_scse_segmentation": Phantom(
        retina.draw, retina.LABELS, "OCT", (1.0, 1.0), ".png", retina.SCANS, "S{number:02d}_b{scan:02d}"
    ),
}
