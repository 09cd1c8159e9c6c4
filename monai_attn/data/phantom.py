# SPDX-License-Identifier: Apache-2.0
"""Look-alike data sets: the folder layout, modality, labels and spacing of a bundle's real data, and made-up anatomy.

They let a bundle run from end to end where the real data are not (yet) at hand. They are harder than trivial (shape
and place vary, contrast is low, there are a bias field and noise), but nothing learnt from them holds for patients.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import GaussianSmooth, RandBiasField, SaveImage
from monai.utils import convert_to_tensor, look_up_option

__all__ = ["PHANTOMS", "Phantom", "make_phantom"]

_VALIDATION_FRACTION = 0.2


class Phantom(NamedTuple):
    """What a look-alike data set consists of.

    Args:
        draw: makes the image (1, *spatial) and the label (1, *spatial) of a case from a random state.
        labels: names of the label values 0, 1, …
        modality: modality, as in ``dataset.json``.
        spacing: voxel size in mm.
    """

    draw: Callable[[np.random.RandomState], tuple[torch.Tensor, torch.Tensor]]
    labels: tuple[str, ...]
    modality: str
    spacing: tuple[float, ...]


def make_phantom(bundle: str, folder: str | Path, cases: int = 20, seed: int = 0) -> Path:
    """Write a look-alike of a bundle's data set.

    Args:
        bundle: name of the bundle, a key of ``PHANTOMS``.
        folder: folder to make; an existing ``dataset.json`` in it is not overwritten.
        cases: number of cases, at least 2; every fifth is for validation.
        seed: seed of the anatomy.

    Returns:
        the folder.

    Raises:
        ValueError: if the bundle is unknown or there are fewer than 2 cases.
        FileExistsError: if the folder holds a data set.

    Example:
        ``make_phantom("hippocampus_mri_scse_segmentation", "data/phantom", cases=20)``
    """
    phantom = look_up_option(bundle, PHANTOMS)
    if cases < 2:
        raise ValueError(f"cases must be at least 2, one to train and one to validate, got {cases}.")
    folder = Path(folder)
    listing = folder / "dataset.json"
    if listing.exists():
        raise FileExistsError(f"{folder} holds a data set already; give another folder.")
    items = []
    for index in range(cases):
        name = f"phantom_{index:03d}"
        image, label = phantom.draw(np.random.RandomState([seed, index]))
        for kind, volume in (("images", image), ("labels", label)):
            _write(volume, phantom.spacing, folder / kind / name)
        items.append({"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"})
    held_out = max(1, round(_VALIDATION_FRACTION * cases))
    content = {
        "name": f"phantom of {bundle}",
        "description": "made-up anatomy, for trying the software only",
        "modality": {"0": phantom.modality},
        "labels": {str(value): name for value, name in enumerate(phantom.labels)},
        "training": items[:-held_out],
        "validation": items[-held_out:],
    }
    listing.write_text(json.dumps(content, indent=1) + "\n")
    return folder


def _write(volume: torch.Tensor, spacing: tuple[float, ...], path: Path) -> None:
    image = MetaTensor(convert_to_tensor(volume, track_meta=False), affine=torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64)))
    path.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.uint8 if volume.dtype == torch.uint8 else np.float32
    SaveImage(output_ext=".nii.gz", output_dtype=dtype, writer="NibabelWriter", print_log=False)(
        image, filename=str(path)
    )


def _degrade(clean: torch.Tensor, rng: np.random.RandomState, noise: float) -> torch.Tensor:
    """Add what a scanner adds to MRI: a smooth bias field and noise."""
    bias_field = RandBiasField(prob=1.0, coeff_range=(0.0, 0.1))
    bias_field.set_random_state(state=rng)
    biased = bias_field(clean)
    noisy = torch.as_tensor(biased) + noise * torch.as_tensor(rng.randn(*clean.shape), dtype=torch.float32)
    return noisy.clamp(min=0)


def _draw_hippocampus(rng: np.random.RandomState) -> tuple[torch.Tensor, torch.Tensor]:
    """A bent, tapering tube from posterior to anterior between white matter above and fluid beside it."""
    shape = (rng.randint(32, 42), rng.randint(42, 56), rng.randint(28, 44))
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape), indexing="ij")
    along = np.linspace(-0.75, 0.7, 30) + rng.uniform(-0.08, 0.08)
    middle_x = rng.uniform(-0.15, 0.15) + rng.uniform(-0.25, 0.25) * along
    middle_z = rng.uniform(-0.15, 0.15) - rng.uniform(0.2, 0.5) * along + rng.uniform(-0.3, 0.3) * along**2
    radius = rng.uniform(0.16, 0.22) * (1 + rng.uniform(0.2, 0.5) * along)
    # distance to the tube's wall, in units of its radius: below 1 is inside
    reach = np.min(
        [
            np.sqrt((x - cx) ** 2 + ((y - cy) * 0.8) ** 2 + (z - cz) ** 2) / r
            for cx, cy, cz, r in zip(middle_x, along, middle_z, radius)
        ],
        axis=0,
    )
    inside = reach < 1
    label = np.where(inside, np.where(y > along[0] + rng.uniform(0.85, 1.05), 1, 2), 0).astype(np.uint8)

    texture = GaussianSmooth(sigma=2.0)(torch.as_tensor(rng.randn(1, *shape), dtype=torch.float32))
    tissue = np.full(shape, 0.55)
    tissue[z > np.interp(y[0, :, 0], along, middle_z)[None, :, None] + 0.35] = 0.8  # white matter above
    tissue[(reach < 1.35) & (x > np.interp(y[0, :, 0], along, middle_x)[None, :, None])] = 0.25  # fluid beside
    tissue[inside] = 0.5
    image = GaussianSmooth(sigma=0.6)(torch.as_tensor(tissue[None], dtype=torch.float32)) + 0.8 * texture
    return 100 * _degrade(image, rng, noise=0.06), torch.as_tensor(label[None])


PHANTOMS = {
    "hippocampus_mri_scse_segmentation": Phantom(
        _draw_hippocampus, ("background", "anterior", "posterior"), "MRI", (1.0, 1.0, 1.0)
    )
}
