# SPDX-License-Identifier: Apache-2.0
"""A skull-stripped head with a glioma in four kinds of MRI, as in the Multimodal Brain Tumor Segmentation challenge.

The head is that of :mod:`~monai_attn.data.phantom.brain`, pushed apart by the tumour.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from monai_attn.data.phantom import brain, scanner
from monai_attn.data.phantom.shapes import bend, ellipsoid, grid, smooth_field

__all__ = ["LABELS", "LABELS_2019", "MODALITIES", "VALUES_2019", "draw", "draw_2019"]

LABELS = ("background", "necrosis", "edema", "non-enhancing", "enhancing")
LABELS_2019 = ("background", "necrosis and non-enhancing", "edema", "enhancing")
VALUES_2019 = (0, 1, 2, 4)  # the challenge left 3 out
MODALITIES = ("T1", "T1c", "T2", "FLAIR")
# brightness in each modality: white matter, grey matter, fluid, then the parts of the tumour
_TISSUES = ("white", "grey", "fluid")
_BRIGHTNESS = {
    "white": (100, 104, 62, 66),
    "grey": (76, 80, 86, 86),
    "fluid": (32, 34, 165, 24),
    "necrosis": (48, 46, 148, 74),
    "edema": (80, 80, 128, 132),
    "non-enhancing": (68, 72, 112, 112),
    "enhancing": (78, 160, 98, 108),
}
_NECROSIS, _EDEMA, _NON_ENHANCING, _ENHANCING = range(1, 5)


def draw(rng: np.random.RandomState) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A head of half an adult's size in voxels of 1 mm, with the parts of the tumour, and a mask of the brain."""
    shape = tuple(rng.randint(side - 3, side + 4) for side in (72, 84, 64))
    points = brain.pose(grid(shape), rng)
    centre = np.array([rng.choice([-1, 1]) * rng.uniform(0.3, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.05, 0.5)])
    size = rng.uniform(0.22, 0.34)
    structures, head = brain.anatomy(_push(points, centre, size, rng.uniform(0.1, 0.35)), rng)
    tissue = _tissues()[structures]
    label = _tumour(points, centre, size, tissue, rng)
    label[~head] = 0

    names = [*_TISSUES, *LABELS[1:]]
    part = np.where(label > 0, label + len(_TISSUES) - 1, tissue)
    pattern = smooth_field(rng, shape, (8, 24))
    channels = []
    for column in np.transpose([_BRIGHTNESS[name] for name in names]):
        means = (column * (1 + 0.06 * rng.randn(len(names)))).astype(np.float32)
        plain = np.where(head, means[part] * (1 + 0.025 * pattern + 0.02 * smooth_field(rng, shape, (8, 24))), 0)
        image = scanner.bias_field(scanner.blur(plain[None], sigma=rng.uniform(0.5, 0.8)), rng, strength=0.12)
        image = scanner.noise(image, rng, sigma=rng.uniform(3, 5)).clamp(min=1)  # 0 is outside only
        channels.append(rng.uniform(1.5, 4) * image * torch.as_tensor(head))
    mask = torch.as_tensor(head[None].astype(np.uint8))
    yield torch.cat(channels).round().to(torch.int16), torch.as_tensor(label[None]), mask


def draw_2019(rng: np.random.RandomState) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The same with the labels of 2019: what does not enhance counts as necrosis."""
    for image, label, mask in draw(rng):
        label[label == _NON_ENHANCING] = _NECROSIS
        yield image, label, mask


def _tissues() -> np.ndarray:
    """Index into ``_TISSUES`` for each structure of the brain."""
    white = ("WM", "brain stem", "ventral DC", "pallidum")
    kinds = []
    for name in brain.LABELS:
        fluid = name == "background" or "ventricle" in name
        kinds.append("fluid" if fluid else "white" if name.endswith(white) else "grey")
    return np.array([_TISSUES.index(kind) for kind in kinds], dtype=np.uint8)


def _push(points: np.ndarray, centre: np.ndarray, size: float, strength: float) -> np.ndarray:
    """Move what lies around the tumour away from it."""
    offset = points - centre.reshape(3, 1, 1, 1).astype(np.float32)
    near = np.exp(-(offset**2).sum(axis=0) / (2 * size) ** 2)
    moved: np.ndarray = points - strength * near * offset
    return moved


def _tumour(
    points: np.ndarray, centre: np.ndarray, size: float, tissue: np.ndarray, rng: np.random.RandomState
) -> np.ndarray:
    """A dead core in an uneven enhancing rim, a part that does not enhance, and swollen white matter around."""
    shape = tissue.shape
    reach = ellipsoid(bend(points, rng, amount=0.04, waves=5), centre, size * rng.uniform(0.8, 1.2, 3))
    reach = reach + 0.09 * smooth_field(rng, shape, (4, 12))
    rim = rng.uniform(0.25, 0.5) * np.exp(0.35 * smooth_field(rng, shape, (3, 9)))
    spread = rng.uniform(1.3, 2.1) + 0.3 * smooth_field(rng, shape, (2, 7))
    white, grey, fluid = (tissue == value for value in range(len(_TISSUES)))
    # cortex hardly swells, fluid cannot
    swollen = reach < np.where(white, spread, np.where(grey, 1 + 0.3 * (spread - 1), 0))
    label = np.where(swollen, _EDEMA, 0).astype(np.uint8)
    core = (reach < 1) & ~(fluid & (reach > 0.8))
    high_grade = rng.rand() < 0.8
    label[core] = _ENHANCING if high_grade else _NON_ENHANCING
    label[core & (smooth_field(rng, shape, (2, 6)) > rng.uniform(0.5, 1.1))] = _NON_ENHANCING
    label[core & (reach < 1 - rim * (1 if high_grade else 2))] = _NECROSIS
    return label
