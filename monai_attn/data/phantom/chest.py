# SPDX-License-Identifier: Apache-2.0
"""A chest in computed tomography, and slices through it as 8-bit pictures; the lungs are labelled.

Pictures are (columns, rows) as MONAI loads them, with the patient's right on the left and the front at the top. Places
and sizes are those of :mod:`~monai_attn.data.phantom.abdomen`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from monai.data import MetaTensor

from monai_attn.data.phantom import abdomen, scanner
from monai_attn.data.phantom.shapes import ellipsoid, grid, tube

__all__ = ["LABELS", "SCANS", "draw", "draw_volume"]

LABELS = ("background", "lungs")
SCANS = 4
_SPACING = (3.0, 3.0, 3.0)
_WINDOW = (-1000, 400)  # HU that become black and white
_AIR, _FAT, _MUSCLE, _BONE = -1000, -95, 52, 420
# vessels of the mediastinum: corners and radii
_AORTA = (
    (-0.04, 0.08, 0.36, 0.07),
    (0.03, 0.1, 0.52, 0.07),
    (-0.04, 0.02, 0.64, 0.065),
    (-0.12, -0.16, 0.58, 0.06),
    (-0.11, -0.25, 0.4, 0.055),
    (-0.06, -0.25, -0.1, 0.05),
)
_CAVA = ((0.13, 0.02, 0.3, 0.06), (0.13, 0.04, 0.6, 0.05), (0.08, 0.06, 0.8, 0.04))
_LUNG_ARTERIES = ((0.2, -0.06, 0.45, 0.05), (0.0, 0.02, 0.48, 0.06), (-0.2, -0.06, 0.48, 0.05))
_HILUM = (0.17, -0.06, 0.44)  # of the right lung


def draw(rng: np.random.RandomState) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Slices through one chest from the diaphragm to the tips of the lungs, windowed to 8 bits."""
    image, label = (volume.as_tensor() for volume in draw_volume(rng))
    low, high = _WINDOW
    picture = (255 * (image.float() - low) / (high - low)).clamp(0, 255).round().to(torch.uint8)
    heights = label[0].any(dim=0).any(dim=0).nonzero()[:, 0].numpy()
    for part in (np.arange(SCANS) + rng.uniform(0.15, 0.85, SCANS)) / SCANS:
        z = heights[int(part * len(heights))]
        yield picture[..., z].flip(1, 2), label[..., z].flip(1, 2)


def draw_volume(rng: np.random.RandomState) -> tuple[MetaTensor, MetaTensor]:
    """A whole chest in HU.

    Args:
        rng: random state.

    Returns:
        image (1, *spatial) as int16 and label (1, *spatial) as uint8, in voxels of 3 mm; x to the right, y to the
        front, z to the head.
    """
    shape = tuple(rng.randint(side - 4, side + 5) for side in (112, 96, 64))
    points = grid(shape) * np.array([1, 1.12, 0.44], dtype=np.float32).reshape(3, 1, 1, 1)
    points[2] += 0.45 + rng.uniform(-0.03, 0.03)
    points = abdomen.pose(points, rng)
    tissue, organs, bone = abdomen.trunk(points, rng)
    before = tissue.copy()
    _shoulders(tissue, points, bone)
    _mediastinum(tissue, points, rng)
    _airways(tissue, points)
    lungs = (organs["left lung"] | organs["right lung"]) & ~bone & (tissue == before)
    for side, sign in (("left", -1), ("right", 1)):
        _vessels(tissue, points, lungs & organs[f"{side} lung"], sign, rng)
    image = scanner.tomogram(tissue, rng)
    return scanner.place(image, _SPACING), scanner.place(lungs[None].astype(np.uint8), _SPACING)


def _shoulders(tissue: np.ndarray, points: np.ndarray, bone: np.ndarray) -> None:
    """Widen the trunk above the armpits, with shoulder blades, heads of the arms and collar bones."""
    mirrored = np.stack([np.abs(points[0]), points[1], points[2]])
    outside = (abdomen.body(points) > 0.94) & ~bone
    reach = ellipsoid(mirrored, (0.56, -0.08, 0.92), (0.4, 0.36, 0.34))
    tissue[outside & (reach < 1)] = _FAT
    tissue[outside & (reach < 0.88)] = _MUSCLE
    blade = tube(mirrored, ((0.42, -0.48, 0.4, 0.02), (0.52, -0.44, 0.66, 0.03), (0.66, -0.2, 0.86, 0.045))) < 1
    collar = tube(mirrored, ((0.1, 0.3, 0.72, 0.04), (0.4, 0.2, 0.82, 0.035), (0.66, 0.02, 0.92, 0.035))) < 1
    arm = ellipsoid(mirrored, (0.74, -0.1, 0.84), (0.11, 0.12, 0.13))
    tissue[(blade | collar) & (tissue > _AIR)] = _BONE
    tissue[arm < 1] = np.where(arm < 0.75, 180, _BONE)[arm < 1]


def _mediastinum(tissue: np.ndarray, points: np.ndarray, rng: np.random.RandomState) -> None:
    """Fat between the lungs, the heart and the great vessels, with more or less contrast agent."""
    blood = rng.uniform(40, 60) + rng.choice([0, 1]) * rng.uniform(40, 160)
    middle = ellipsoid(points, (0.0, 0.04, 0.56), (0.19, 0.3, 0.3)) < 1
    tissue[middle & (tissue > -500) & (tissue < 150)] = _FAT
    heart = ellipsoid(points, (-0.1, 0.18, 0.4), (0.3, 0.32, 0.24))
    inside = (heart < 1) & (tissue > -500)
    tissue[inside] = np.where(heart < 0.8, blood, _MUSCLE)[inside]
    for path in (_AORTA, _CAVA, _LUNG_ARTERIES):
        tissue[tube(points, np.asarray(path) * (1, 1, 1, rng.uniform(0.85, 1.15))) < 1] = blood
    tissue[tube(points, ((-0.03, -0.21, 0.2, 0.035), (0.0, -0.2, 1.0, 0.035))) < 1] = 35  # gullet


def _airways(tissue: np.ndarray, points: np.ndarray) -> None:
    """The windpipe and the two main bronchi with their walls."""
    reach = tube(points, ((0, 0.0, 1.2, 0.06), (0, -0.11, 0.56, 0.06)))
    for sign in (1, -1):
        reach = np.minimum(reach, tube(points, ((0, -0.11, 0.56, 0.055), (0.2 * sign, -0.1, 0.42, 0.04))))
    tissue[(reach < 1.3) & (tissue > -500)] = 30
    tissue[reach < 1] = -980


def _vessels(tissue: np.ndarray, points: np.ndarray, lung: np.ndarray, sign: int, rng: np.random.RandomState) -> None:
    """A tree of vessels from the hilum into one lung, each branch with twigs."""
    inner, brightness = points[:, lung], tissue[lung]
    root = np.array(_HILUM) * (sign, 1, 1)
    for _ in range(rng.randint(10, 15)):
        goal = inner[:, rng.randint(inner.shape[1])]
        fork = root + rng.uniform(0.4, 0.6) * (goal - root) + 0.03 * rng.randn(3)
        twig = goal + 0.15 * rng.randn(3)
        width = rng.uniform(0.018, 0.03)
        reach = tube(inner, ((*root, width), (*fork, 0.7 * width), (*goal, 0.012)))
        reach = np.minimum(reach, tube(inner, ((*fork, 0.6 * width), (*twig, 0.01))))
        brightness = np.maximum(brightness, np.where(reach < 1, 20, _AIR))
    tissue[lung] = brightness
