# SPDX-License-Identifier: Apache-2.0
"""Look-alike data sets: the folder layout, modality, labels and spacing of a bundle's real data, and made-up anatomy.

They let a bundle run from end to end where the real data are not (yet) at hand. They are harder than trivial (shape
and place vary, contrast is low, scanners add blur, noise and shading), but nothing learnt from them holds for patients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.transforms import SaveImage
from monai.utils import convert_to_numpy
from tqdm import tqdm

from monai_attn.data.phantom import (
    abdomen,
    brain,
    chest,
    hippocampus,
    kidney,
    pelvis,
    retina,
    scanner,
    skin,
    tumour,
)
from monai_attn.errors import ConfigError, DataError

__all__ = ["PHANTOMS", "Phantom", "make_phantom"]

_VALIDATION_FRACTION = 0.2
_WRITERS = {".nii.gz": "NibabelWriter", ".png": "PILWriter", ".jpg": "PILWriter"}
_KINDS = ("image", "label", "mask")


class Phantom(NamedTuple):
    """What a look-alike data set consists of.

    Args:
        draw: makes the scans of a subject from a random state, each an image (channels, *spatial), a label
            (1, *spatial) and perhaps a mask of the region to look at (1, *spatial), in the types and with the values
            that they are stored with; MetaTensors if they have a spacing of their own.
        labels: names of the labels.
        modalities: modality of the image, as in ``dataset.json``. If there are several, each channel of an image is a
            file of its own, whose name ends with the modality.
        spacing: voxel size in mm; 1 for pictures, which have none; None if it differs among subjects.
        suffix: ending of the image files, ``".nii.gz"``, ``".png"`` or ``".jpg"``.
        label_suffix: ending of the label files if it is another one.
        values: values of the labels in the files; None for 0, 1, ….
        scans: number of scans of a subject.
        name: name of a case, with the fields ``subject`` and ``scan`` counted from 0, and ``number`` from 1.

    Example:
        >>> PHANTOMS["hippocampus_mri_scse_segmentation"].labels
        ('background', 'anterior', 'posterior')
    """

    draw: Callable[[np.random.RandomState], Iterator[tuple[torch.Tensor, ...]]]
    labels: tuple[str, ...]
    modalities: tuple[str, ...]
    spacing: tuple[float, ...] | None
    suffix: str = ".nii.gz"
    label_suffix: str | None = None
    values: tuple[int, ...] | None = None
    scans: int = 1
    name: str = "phantom_{subject:03d}"


def make_phantom(bundle: str, folder: str | Path, cases: int = 20, seed: int = 0) -> Path:
    """Write a look-alike of a bundle's data set, with a progress bar on a terminal.

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
            "modality": {str(channel): modality for channel, modality in enumerate(phantom.modalities)},
            "labels": dict(zip(map(str, phantom.values or count()), phantom.labels)),
            "training": list(chain.from_iterable(subjects[:-held_out])),
            "validation": list(chain.from_iterable(subjects[-held_out:])),
        }
        listing.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(str(folder), f"it cannot be written: {error}", "give a folder on a disk with space") from error
    return folder


def _write_subjects(phantom: Phantom, folder: Path, cases: int, seed: int) -> list[list[dict[str, Any]]]:
    """Write the scans of as many subjects as make up the cases; returns the entries of each subject."""
    subjects = []
    firsts = range(0, cases, phantom.scans)
    for subject, first in enumerate(tqdm(firsts, "phantom", leave=False, unit="subject", disable=None)):
        items = []
        scans = phantom.draw(np.random.RandomState([seed, subject]))
        for scan, volumes in zip(range(min(phantom.scans, cases - first)), scans):
            name = phantom.name.format(subject=subject, number=subject + 1, scan=scan)
            items.append(_write_case(phantom, volumes, folder, name))
        subjects.append(items)
    return subjects


def _write_case(phantom: Phantom, volumes: Sequence[torch.Tensor], folder: Path, name: str) -> dict[str, Any]:
    """Write the files of one scan; returns their paths relative to the folder, under what they are."""
    item: dict[str, Any] = {}
    for kind, volume in zip(_KINDS, volumes):
        suffix = phantom.suffix if kind == "image" else phantom.label_suffix or phantom.suffix
        (folder / f"{kind}s").mkdir(parents=True, exist_ok=True)
        if kind == "image" and len(phantom.modalities) > 1:
            files = [f"{name}_{modality.lower()}" for modality in phantom.modalities]
            parts = list(volume.split(1))
        else:
            files, parts = [name], [volume]
        for file, part in zip(files, parts):
            _write(part, phantom.spacing, folder / f"{kind}s" / file, suffix)
        paths = [f"{kind}s/{file}{suffix}" for file in files]
        item[kind] = paths if len(paths) > 1 else paths[0]
    return item


def _write(volume: torch.Tensor, spacing: tuple[float, ...] | None, path: Path, suffix: str) -> None:
    image = volume if spacing is None else scanner.place(volume, spacing)
    SaveImage(
        output_ext=suffix,
        output_dtype=convert_to_numpy(volume).dtype,
        writer=_WRITERS[suffix],
        resample=False,
        print_log=False,
    )(image, filename=str(path))


_MM = (1.0, 1.0, 1.0)
_PICTURE = (1.0, 1.0)

PHANTOMS = {
    "hippocampus_mri_scse_segmentation": Phantom(hippocampus.draw, hippocampus.LABELS, ("MRI",), _MM),
    "brain_mri_scse_segmentation": Phantom(brain.draw, brain.LABELS, ("MRI",), _MM),
    "whole_body_ct_scse_segmentation": Phantom(abdomen.draw, abdomen.LABELS, ("CT",), (2.0, 2.0, 2.0)),
    "retinal_oct_scse_segmentation": Phantom(
        retina.draw,
        retina.LABELS,
        ("OCT",),
        _PICTURE,
        suffix=".png",
        scans=retina.SCANS,
        name="S{number:02d}_b{scan:02d}",
    ),
    "skin_lesion_focusnet_segmentation": Phantom(
        skin.draw,
        skin.LABELS,
        ("RGB dermoscopy",),
        _PICTURE,
        suffix=".jpg",
        label_suffix=".png",
        values=skin.VALUES,
    ),
    "lung_ct_focusnet_segmentation": Phantom(
        chest.draw,
        chest.LABELS,
        ("CT slice, HU -1000..400 -> 0..255",),
        _PICTURE,
        suffix=".png",
        scans=chest.SCANS,
        name="phantom_{subject:03d}_z{scan:02d}",
    ),
    "hippocampus_mri_egcnn_segmentation": Phantom(hippocampus.draw, hippocampus.LABELS, ("MRI",), _MM),
    "brats_mri_egcnn_segmentation": Phantom(
        tumour.draw_2019, tumour.LABELS_2019, tumour.MODALITIES, _MM, values=tumour.VALUES_2019
    ),
    "kits_ct_egcnn_segmentation": Phantom(kidney.draw, kidney.LABELS, ("CT",), spacing=None),
    "brats_mri_autofocus_segmentation": Phantom(tumour.draw, tumour.LABELS, tumour.MODALITIES, _MM),
    "pelvic_ct_autofocus_segmentation": Phantom(pelvis.draw, pelvis.LABELS, ("CT",), (3.0, 3.0, 3.0)),
}
