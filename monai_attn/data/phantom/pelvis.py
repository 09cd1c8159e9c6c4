# SPDX-License-Identifier: Apache-2.0
"""A male pelvis in computed tomography with the organs that radiotherapy of the prostate spares or treats.

The organs are those of Qin et al., Autofocus Layer for Semantic Segmentation (https://arxiv.org/abs/1805.08403), whose
scans are not public. Places and sizes are in units of 100 mm from the middle between the heads of the thighs: x to the
right, y to the front, z to the head; the patient is small. Brightness is in HU.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from monai_attn.data.phantom import scanner
from monai_attn.data.phantom.shapes import bend, ellipsoid, grid, smooth_field, tube, turn

__all__ = ["LABELS", "draw"]

LABELS = ("background", "prostate", "bladder", "left femur", "right femur", "rectum", "seminal vesicles")
_SPACING = 3.0  # mm
_AIR, _FAT, _MUSCLE, _MARROW, _BONE = -1000, -100, 52, 180, 520
# mean HU and its deviation among patients
_BRIGHTNESS = {"prostate": (40, 5), "bladder": (8, 4), "rectum": (42, 5), "seminal vesicles": (28, 5)}
# corners and radii of tubes; of a pair the right one
_HEAD = (0.66, 0.0, 0.03)
_FEMUR = ((0.7, 0.0, 0.02, 0.1), (0.92, -0.06, -0.12, 0.12), (1.0, -0.08, -0.24, 0.14), (0.97, 0.0, -0.9, 0.11))
_VESICLE = ((0.03, -0.06, 0.06, 0.05), (0.15, -0.1, 0.12, 0.06), (0.27, -0.08, 0.16, 0.045))
_RECTUM = (
    (0, -0.28, -0.5, 0.08),
    (0, -0.2, -0.28, 0.09),
    (0, -0.25, -0.05, 0.12),
    (0.02, -0.36, 0.2, 0.14),
    (-0.03, -0.38, 0.42, 0.13),
    (-0.2, -0.25, 0.62, 0.11),
)
_MUSCLES = (  # centre and radii
    ((0.55, -0.56, 0.05), (0.52, 0.24, 0.75)),
    ((1.0, -0.12, 0.3), (0.24, 0.42, 0.55)),
    ((0.85, 0.42, -0.3), (0.35, 0.22, 0.75)),
    ((0.72, 0.3, 0.35), (0.22, 0.2, 0.6)),
    ((0.6, -0.1, -0.6), (0.5, 0.45, 0.45)),
    ((0.4, -0.05, 0.0), (0.09, 0.3, 0.3)),
    ((0.18, 0.6, 0.5), (0.22, 0.07, 0.6)),
)
_HIP = (  # socket and wing, then sitting bone, then pubic bones
    ((0.6, -0.3, 0.3, 0.09), (0.72, 0.05, 0.25, 0.09)),
    ((0.4, -0.52, 0.62, 0.08), (0.68, -0.3, 0.62, 0.06), (0.9, 0.08, 0.62, 0.08)),
    ((0.42, -0.5, 0.8, 0.07), (0.72, -0.28, 0.85, 0.05), (0.95, 0.08, 0.8, 0.07)),
    ((0.55, -0.22, 0.2, 0.1), (0.56, -0.28, -0.15, 0.1), (0.5, -0.3, -0.42, 0.12)),
    ((0.5, 0.2, 0.02, 0.1), (0.28, 0.38, -0.02, 0.08), (0.07, 0.42, -0.12, 0.1)),
    ((0.1, 0.38, -0.2, 0.07), (0.3, 0.1, -0.38, 0.06), (0.46, -0.22, -0.46, 0.08)),
)


def draw(rng: np.random.RandomState) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A pelvis from the wings of the hip bones to the upper thighs, in voxels of 3 mm."""
    shape = tuple(rng.randint(side - 3, side + 4) for side in (96, 72, 48))
    half = np.array(shape, dtype=np.float32).reshape(3, 1, 1, 1) / 2 * _SPACING / 100
    points = turn(grid(shape) * half, rng, degrees=3) * rng.uniform(0.95, 1.06, (3, 1, 1, 1)).astype(np.float32)
    points = bend(points, rng, amount=0.02)
    mirrored = np.stack([np.abs(points[0]), points[1], points[2]])

    tissue = _soft_tissue(points, mirrored, rng)
    _bones(tissue, mirrored)
    label = _organs(tissue, points, mirrored, rng)
    yield scanner.tomogram(tissue, rng), torch.as_tensor(label[None])


def _soft_tissue(points: np.ndarray, mirrored: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Skin, fat, muscles, loops of bowel, vessels and the table."""
    x, y, z = mirrored
    width, depth = 1.32 + 0.04 * np.cos(2 * z), 0.84 - 0.06 * z
    skin = ((x / width) ** 2.3 + (np.abs(y) / depth) ** 2.3) ** np.float32(1 / 2.3)
    cleft = (y < -0.62 + 0.1 * z) & (x < 0.12 * (-0.62 + 0.1 * z - y).clip(min=0) + 0.02) & (z < 0.25)
    inside = (skin < 1) & ~cleft
    tissue = np.where(inside, _FAT, _AIR).astype(np.float32)
    tissue[(skin > 1) & (np.abs(y + 0.93) < 0.04)] = -500  # a flat table
    lean = rng.uniform(0.86, 0.94)
    reach = np.min([ellipsoid(mirrored, centre, radii) for centre, radii in _MUSCLES], axis=0)
    marbling = smooth_field(rng, tissue.shape, (6, 16))
    tissue[(reach + 0.05 * marbling < 1) & (skin < lean)] = _MUSCLE
    loops, gas = smooth_field(rng, tissue.shape, (5, 11)), smooth_field(rng, tissue.shape, (3, 9))
    belly = (ellipsoid(points, (0, 0.2, 0.85), (0.62, 0.42, 0.5)) < 1) & (loops > -0.2)
    tissue[belly] = np.where(gas > 1.4, -850, 30)[belly]
    for shift in (0.0, 0.1):  # artery and vein
        vessel = tube(
            mirrored, ((0.3, -0.1 - shift, 0.75, 0.05), (0.5, 0.25 - shift, 0.4, 0.05), (0.55, 0.5, -0.3, 0.05))
        )
        tissue[vessel < 1] = 45
    return tissue


def _bones(tissue: np.ndarray, mirrored: np.ndarray) -> None:
    """Hip bones with a socket around the head of the thigh, the sacrum and the tail bone."""
    x, y, z = mirrored
    hip = np.min([tube(mirrored, path) for path in _HIP], axis=0)
    socket = ellipsoid(mirrored, _HEAD, (0.27, 0.27, 0.27))
    hip = np.where((x + 0.4 * y < 0.66) | (z > 0.12), np.minimum(hip, socket), hip)
    hip = np.minimum(hip, ellipsoid(mirrored, (0.0, -0.68, 0.68), (0.42, 0.16, 0.36)))
    hip = np.minimum(hip, tube(mirrored, ((0, -0.66, 0.4, 0.1), (0, -0.6, 0.16, 0.06), (0, -0.5, 0.04, 0.04))))
    tissue[hip < 1] = np.where(hip < 0.72, _MARROW, _BONE)[hip < 1]
    tissue[ellipsoid(mirrored, _HEAD, (0.205, 0.205, 0.205)) < 1] = 30  # joint


def _organs(tissue: np.ndarray, points: np.ndarray, mirrored: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Paint the organs into the tissue, later ones over earlier ones; returns their labels."""

    def blob(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        return ellipsoid(points, np.add(centre, 0.02 * rng.randn(3)), np.multiply(radii, rng.uniform(0.9, 1.1, 3)))

    full, swollen = rng.uniform(0.75, 1.3), rng.uniform(0.85, 1.3)
    lift = 0.2 * (full - 1)
    wide = np.array([1, 1, 1, rng.uniform(0.8, 1.2)])
    reach = {
        "bladder": blob((0.0, 0.16, 0.24 + lift), (0.33 * full, 0.25 * full, 0.2 * full)),
        "seminal vesicles": tube(
            mirrored, np.asarray(_VESICLE) * wide + (0, 0.02 * rng.randn(), 0.02 * rng.randn(), 0)
        ),
        "rectum": tube(points, np.asarray(_RECTUM) * (1, 1, 1, rng.uniform(0.8, 1.25))),
        "prostate": blob((0.0, 0.08, -0.1), (0.2 * swollen, 0.16 * swollen, 0.17 * swollen)),
    }
    label = np.zeros(tissue.shape, dtype=np.uint8)
    texture = smooth_field(rng, tissue.shape, (8, 20))
    for name, distance in reach.items():
        mean, deviation = _BRIGHTNESS[name]
        inside = distance < 1
        tissue[(distance < 1.12) & (label == 0) & (tissue < 0)] = 35  # wall
        tissue[inside] = mean + deviation * rng.randn() + 4 * texture[inside]
        label[inside] = LABELS.index(name)
    gas = (reach["rectum"] < 0.75) & (label == LABELS.index("rectum"))
    content = smooth_field(rng, tissue.shape, (2, 8)) + rng.uniform(-1.5, 1)
    tissue[gas] = np.where(content > 0.6, -880, np.where(content > -0.6, 20 + 40 * texture, 42))[gas]

    head = ellipsoid(mirrored, _HEAD, (0.18, 0.18, 0.18))
    femur = np.minimum(head, tube(mirrored, _FEMUR))
    bone = femur < 1
    tissue[bone] = np.where(femur < 0.7, _MARROW, _BONE)[bone]
    label[bone] = np.where(points[0] < 0, LABELS.index("left femur"), LABELS.index("right femur"))[bone]
    return label
