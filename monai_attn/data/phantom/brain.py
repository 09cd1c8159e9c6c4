# SPDX-License-Identifier: Apache-2.0
"""A skull-stripped head in T1-weighted MRI with the 27 structures of the MICCAI 2012 multi-atlas challenge.

Places and sizes are those of adult brains, in units of half the brain: x to the right, y to the front, z to the top.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from monai_attn.data.phantom import scanner
from monai_attn.data.phantom.shapes import bend, ellipsoid, grid, smooth_field, tube, turn

__all__ = ["LABELS", "anatomy", "draw", "pose"]

_PAIRED_FIRST = (
    "cerebral WM",
    "cerebral cortex",
    "lateral ventricle (+inferior)",
    "cerebellum WM",
    "cerebellum cortex",
    "thalamus",
    "caudate",
    "putamen",
    "pallidum",
)
_SINGLE = ("3rd ventricle", "4th ventricle", "brain stem")
_PAIRED_LAST = ("hippocampus", "amygdala", "ventral DC")
LABELS = (
    "background",
    *(f"L {name}" for name in _PAIRED_FIRST),
    *_SINGLE,
    *(f"L {name}" for name in _PAIRED_LAST),
    *(f"R {name}" for name in _PAIRED_FIRST + _PAIRED_LAST),
)

# brightness in T1; the folds' fluid is background
_BRIGHTNESS = {
    "background": 30,
    "cerebral WM": 101,
    "cerebral cortex": 75,
    "lateral ventricle (+inferior)": 34,
    "cerebellum WM": 91,
    "cerebellum cortex": 73,
    "thalamus": 88,
    "caudate": 78,
    "putamen": 84,
    "pallidum": 95,
    "3rd ventricle": 38,
    "4th ventricle": 36,
    "brain stem": 89,
    "hippocampus": 74,
    "amygdala": 75,
    "ventral DC": 91,
}
# centre and radii, or the corners and radii of a tube; of a pair the right one; later ones lie over earlier ones
_BLOBS = {
    "ventral DC": ((0.14, 0.03, -0.17), (0.15, 0.19, 0.11)),
    "thalamus": ((0.14, -0.03, 0.05), (0.15, 0.23, 0.17)),
    "putamen": ((0.37, 0.20, 0.0), (0.11, 0.25, 0.18)),
    "pallidum": ((0.29, 0.14, -0.02), (0.075, 0.15, 0.105)),
    "amygdala": ((0.34, 0.18, -0.26), (0.11, 0.095, 0.105)),
    "3rd ventricle": ((0.0, 0.08, -0.03), (0.03, 0.21, 0.14)),
    "4th ventricle": ((0.0, -0.29, -0.54), (0.085, 0.06, 0.13)),
}
_TUBES = {
    "brain stem": ((0, -0.08, -0.2, 0.15), (0, -0.06, -0.45, 0.19), (0, -0.16, -0.68, 0.13), (0, -0.2, -1, 0.1)),
    "caudate": (
        (0.19, 0.4, 0.06, 0.09),
        (0.22, 0.2, 0.23, 0.065),
        (0.25, -0.08, 0.27, 0.045),
        (0.29, -0.2, 0.2, 0.035),
    ),
    "lateral ventricle (+inferior)": (
        (0.12, 0.46, 0.08, 0.05),
        (0.11, 0.3, 0.19, 0.075),
        (0.13, 0.0, 0.29, 0.06),
        (0.21, -0.28, 0.24, 0.08),
        (0.34, -0.42, 0.06, 0.09),
        (0.45, -0.28, -0.14, 0.05),
        (0.44, 0.02, -0.25, 0.035),
    ),
    "hippocampus": ((0.35, 0.08, -0.28, 0.11), (0.4, -0.1, -0.23, 0.09), (0.37, -0.3, -0.07, 0.06)),
}
_ORDER = (
    "brain stem",
    "ventral DC",
    "thalamus",
    "lateral ventricle (+inferior)",
    "caudate",
    "putamen",
    "pallidum",
    "hippocampus",
    "amygdala",
    "3rd ventricle",
    "4th ventricle",
)
_CORTEX = 0.09  # thickness
_FOLD = 0.3  # depth of the deepest folds


def draw(rng: np.random.RandomState) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A head of half an adult's size, in voxels of 1 mm."""
    shape = tuple(rng.randint(side - 4, side + 5) for side in (88, 104, 88))
    label, head = anatomy(pose(grid(shape), rng), rng)
    means = np.array([_BRIGHTNESS[name.removeprefix("L ").removeprefix("R ")] for name in LABELS], dtype=np.float32)
    means *= 1 + 0.02 * rng.randn(len(LABELS)).astype(np.float32)
    tissue = means[label] + 1.5 * smooth_field(rng, shape, (8, 24))
    image = scanner.blur(np.where(head, tissue, 0)[None], sigma=rng.uniform(0.5, 0.7))
    image = scanner.noise(scanner.bias_field(image, rng, strength=0.12), rng, sigma=rng.uniform(3, 5))
    image = rng.uniform(1.5, 2.5) * image * torch.as_tensor(head)
    yield image.clamp(min=0).round().to(torch.int16), torch.as_tensor(label[None])


def pose(points: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Turn, stretch and bend the points (3, ...) of an image as one head differs from another."""
    points = turn(points, rng, degrees=5) * rng.uniform(1.03, 1.12, (3, 1, 1, 1)).astype(np.float32)
    points[0] *= 1.07
    return bend(points, rng, amount=0.03)


def anatomy(points: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    """The structures at points (3, ...) as indices into ``LABELS``, and where the brain and the fluid around it are."""
    right = points[0] > 0
    mirrored = np.stack([np.abs(points[0]), points[1], points[2]])
    label = np.zeros(points.shape[1:], dtype=np.uint8)
    head = _cerebrum(label, mirrored, right, rng)
    head |= _cerebellum(label, mirrored, right, rng)
    head |= _deep_structures(label, mirrored, right, rng)
    return label, head


def _paint(label: np.ndarray, where: np.ndarray, right: np.ndarray, name: str) -> None:
    if name in LABELS:
        label[where] = LABELS.index(name)
    else:
        label[where] = np.where(right[where], LABELS.index(f"R {name}"), LABELS.index(f"L {name}"))


def _cerebrum(label: np.ndarray, points: np.ndarray, right: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Two hemispheres of white matter in folded cortex, joined below the fissure; returns where they and fluid are."""
    x, y, z = points
    height = np.where(z > 0.1, 0.86, 0.48).astype(np.float32)  # flat below
    hull = np.sqrt((x / 0.95) ** 2 + (y / 0.97) ** 2 + ((z - 0.1) / height) ** 2)
    hull = np.minimum(hull, ellipsoid(points, (0.5, 0.15, -0.28), (0.38, 0.55, 0.36)))  # temporal lobe
    bridge = ellipsoid(points, (0.0, 0.03, 0.06), (0.3, 0.52, 0.34)) < 1  # corpus callosum and what it covers
    depth = np.minimum(1 - hull, np.where(bridge, 1, x - 0.012))
    # the Sylvian fissure, above the temporal lobe
    cleft = ((0.52 - x).clip(min=0), (np.abs(y - 0.1) - 0.35).clip(min=0), z + 0.08 + 0.3 * (y - 0.1))
    depth = np.minimum(depth, np.sqrt(sum(part**2 for part in cleft)) - 0.01)

    # folds run inwards: they depend on the direction from a hemisphere's middle, little on the distance
    rays = bend(points, rng, amount=0.03, waves=7) - np.array([0.25, 0.0, 0.05], dtype=np.float32).reshape(3, 1, 1, 1)
    length = np.sqrt((rays**2).sum(axis=0)) + 1e-3
    rays = rays / length * (0.55 + 0.25 * length)
    rays[0] = (rays[0] + 1) / 2 * np.where(right, 1, -1)  # each hemisphere has a half of the pattern
    pattern = torch.as_tensor(smooth_field(rng, (80, 64, 64), (9, 16)))[None, None]
    where = torch.as_tensor(np.moveaxis(rays[::-1], 0, -1).copy(), dtype=torch.float32)[None]
    ridge = F.grid_sample(pattern, where, align_corners=True)[0, 0].numpy()
    fold = np.exp(-((ridge / 0.42) ** 2))
    gap = np.exp(-((ridge / 0.14) ** 2))

    inside = depth > 0.012 + (_FOLD - _CORTEX) * gap
    _paint(label, inside, right, "cerebral cortex")
    _paint(label, inside & (depth > _CORTEX + _FOLD * fold * (depth < 2 * _FOLD)), right, "cerebral WM")
    return hull < 1.02


def _cerebellum(label: np.ndarray, points: np.ndarray, right: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Two hemispheres with a tree of white matter; returns where they and the fluid around are."""
    size = rng.uniform(0.93, 1.05)
    reach = ellipsoid(points, (0.32, -0.48, -0.53), (0.42 * size, 0.4 * size, 0.36 * size))
    reach = np.minimum(reach, ellipsoid(points, (0.0, -0.48, -0.52), (0.2, 0.36 * size, 0.36 * size)))
    angle = np.arctan2(points[2] + 0.54, points[1] + 0.3) + 0.5 * points[0]
    branches = np.cos(9 * angle + rng.uniform(0, 2 * np.pi))
    inside = (reach < 1) & ((label == 0) | (points[2] < -0.3))
    _paint(label, inside, right, "cerebellum cortex")
    _paint(label, inside & (reach < 0.52 + 0.22 * branches) & (points[0] > 0.04), right, "cerebellum WM")
    return inside | (ellipsoid(points, (0.0, -0.3, -0.42), (0.45, 0.5, 0.4)) < 1)


def _deep_structures(
    label: np.ndarray, points: np.ndarray, right: np.ndarray, rng: np.random.RandomState
) -> np.ndarray:
    """Nuclei, ventricles and brain stem, each a little elsewhere in every head; returns where they are."""
    near = (points[0] < 0.65) & (np.abs(points[1]) < 0.65) & (points[2] < 0.5)
    points, right, part = points[:, near], right[near], label[near]
    ventricles = rng.uniform(0.75, 1.4)
    found = np.zeros(part.shape, dtype=bool)
    for name in _ORDER:
        shift = 0.012 * rng.randn(3) * (1, 1, 1) if name not in _SINGLE else 0.012 * rng.randn(3) * (0, 1, 1)
        scale = rng.uniform(0.9, 1.12) * (ventricles if "ventricle" in name else 1)
        if name in _BLOBS:
            centre, radii = _BLOBS[name]
            reach = ellipsoid(points, np.add(centre, shift), np.multiply(radii, scale))
        else:
            reach = tube(points, np.asarray(_TUBES[name]) * (1, 1, 1, scale) + (*shift, 0))
        _paint(part, reach < 1, right, name)
        found |= reach < 1
    label[near] = part
    everywhere = np.zeros(label.shape, dtype=bool)
    everywhere[near] = found
    return everywhere
