# SPDX-License-Identifier: Apache-2.0
"""Phantom data sets of random spheres, one for each bundle.

Each has the layout, file formats, spacing, labels and intensities of the bundle's real data, to test the bundle end to
end; ``phantoms.json`` is the table of them. Results say nothing about patients.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor, create_test_image_2d, create_test_image_3d
from monai.transforms import SaveImage
from numpy.typing import DTypeLike
from tqdm import tqdm

from monai_attn.errors import ConfigError, DataError

__all__ = ["PHANTOMS", "Phantom", "make_phantom"]

_VALIDATION_FRACTION = 0.2
_WRITERS = {".nii.gz": "NibabelWriter", ".png": "PILWriter", ".jpg": "PILWriter"}


class Phantom(NamedTuple):
    """Properties of a phantom data set.

    Args:
        values: values of the labels in the files, the background's first.
        shape: typical spatial shape of an image.
        levels: intensity of the background and of the last label; those of the others lie between.
        outside: intensity around the body; ``None`` if the body fills the image.
        spacings: voxel sizes in mm, used in turn by the cases; 1 for pictures.
        modalities: modalities of the image, as in ``dataset.json``, a file for each.
        channels: number of channels of a file.
        dtype: type of the intensities.
        suffixes: extensions of the image and label files, each ``".nii.gz"``, ``".png"`` or ``".jpg"``.
        mask: whether a third file shows where the body is.
        scans: number of images of a subject.

    Example:
        >>> PHANTOMS["skin_lesion_focusnet_segmentation"].suffixes
        ('.jpg', '.png')
    """

    values: Sequence[int]
    shape: tuple[int, ...] = (56, 48, 40)
    levels: tuple[float, float] = (60, 240)
    outside: float | None = 0
    spacings: tuple[tuple[float, ...], ...] = ((1.0, 1.0, 1.0),)
    modalities: tuple[str, ...] = ("MRI",)
    channels: int = 1
    dtype: DTypeLike = np.int16
    suffixes: tuple[str, str] = (".nii.gz", ".nii.gz")
    mask: bool = False
    scans: int = 1


def _phantom(fields: dict[str, Any]) -> Phantom:
    own: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return Phantom(**own)


_TABLE = json.loads(Path(__file__).with_name("phantoms.json").read_text(encoding="utf-8"))
PHANTOMS = {bundle: _phantom(fields) for bundle, fields in _TABLE.items()}


def make_phantom(bundle: str, folder: str | Path, cases: int = 20, seed: int = 0) -> Path:
    """Write a phantom of a bundle's data set.

    Args:
        bundle: name of the bundle, a key of ``PHANTOMS``.
        folder: folder to make, which is returned; an existing ``dataset.json`` in it is not overwritten.
        cases: number of images, of at least 2 subjects; the last fifth of the subjects is for validation.
        seed: seed of the images, from 0.

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
        problem = f"two subjects are needed (images of a subject: {phantom.scans})"
        raise ConfigError(f"cases={cases}", problem, f"give at least {phantom.scans + 1}")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed={seed}", "it is not between 0 and 2**32 - 1", "give another")
    folder = Path(folder)
    listing = folder / "dataset.json"
    try:
        if listing.exists():
            raise DataError(str(folder), "it holds a data set already", "give another folder")
        numbers = tqdm(range(cases), "phantom", leave=False, unit="case", disable=None)
        items = [_write_case(phantom, folder, number, seed) for number in numbers]
        subjects = [items[first : first + phantom.scans] for first in range(0, cases, phantom.scans)]
        held_out = max(1, round(_VALIDATION_FRACTION * len(subjects)))
        content = {
            "name": f"phantom of {bundle}",
            "description": "made-up spheres, for trying the software only",
            "modality": dict(enumerate(phantom.modalities)),
            "labels": {value: f"structure {value}" if value else "background" for value in phantom.values},
            "training": list(chain(*subjects[:-held_out])),
            "validation": list(chain(*subjects[-held_out:])),
        }
        listing.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(str(folder), f"it cannot be written: {error}", "give a folder on a disk with space") from error
    return folder


def _draw(phantom: Phantom, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the image (C, *spatial), label (1, *spatial) and mask of the body (1, *spatial) of a case."""
    margin = 0 if phantom.outside is None else 3
    shape = np.array(phantom.shape) + (rng.randint(-2, 3, 3) - 2 * margin if margin else 0)
    create: Callable[..., Any] = create_test_image_2d if len(shape) == 2 else create_test_image_3d
    number = len(phantom.values) - 1
    radius = int(min(shape) / (2 + len(phantom.values) ** 0.5))
    spheres = {"num_objs": 4 * number, "rad_max": radius, "rad_min": radius // 2, "num_seg_classes": number}
    classes = np.zeros(1)
    while len(np.unique(classes)) <= number:
        _, classes = create(*shape, **spheres, channel_dim=0, random_state=rng)
    background, *levels = np.linspace(*phantom.levels, len(phantom.values))
    contrasts = [np.array([background, *np.roll(levels, shift)]) for shift in range(len(phantom.modalities))]
    image = np.concatenate([contrast[classes] for contrast in contrasts] * phantom.channels)
    image += 0.03 * np.ptp(phantom.levels) * rng.randn(*image.shape)
    border = [(0, 0), *[(margin, margin)] * len(shape)]
    image = np.pad(image, border, constant_values=phantom.outside or 0).astype(phantom.dtype)
    label = np.array(phantom.values, np.uint8)[classes]
    return image, np.pad(label, border), np.pad(np.ones_like(label), border)


def _write_case(phantom: Phantom, folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Write the files of a case; return their paths relative to the folder."""
    subject, scan = divmod(number, phantom.scans)
    name = f"phantom_{subject:03d}" + (f"_{scan:02d}" if phantom.scans > 1 else "")
    affine = torch.diag(torch.tensor([*phantom.spacings[number % len(phantom.spacings)], 1.0]))
    suffix, label_suffix = phantom.suffixes
    quiet: dict[str, Any] = {"resample": False, "print_log": False}

    def write(volume: np.ndarray, path: str, suffix: str = label_suffix) -> str:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        save = SaveImage(output_ext=suffix, output_dtype=volume.dtype, writer=_WRITERS[suffix], **quiet)
        save(MetaTensor(volume, affine=affine), filename=str(folder / path))
        return path + suffix

    image, label, mask = _draw(phantom, np.random.RandomState([seed, number]))
    item: dict[str, Any] = {"image": [], "label": write(label, f"labels/{name}")}
    for modality, channels in zip(phantom.modalities, np.split(image, len(phantom.modalities))):
        ending = f"_{modality.lower()}" if len(phantom.modalities) > 1 else ""
        item["image"].append(write(channels, f"images/{name}{ending}", suffix))
    if len(item["image"]) == 1:
        (item["image"],) = item["image"]
    return {**item, "mask": write(mask, f"masks/{name}")} if phantom.mask else item
