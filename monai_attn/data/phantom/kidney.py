# SPDX-License-Identifier: Apache-2.0
"""Kidneys with tumours in computed tomography with contrast agent, as in the Kidney Tumor Segmentation challenge.

The trunk is that of :mod:`~monai_attn.data.phantom.abdomen` at the height of the kidneys.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from monai.data import MetaTensor

from monai_attn.data.phantom import abdomen, scanner
from monai_attn.data.phantom.shapes import bend, ellipsoid, grid, smooth_field, tube

__all__ = ["LABELS", "draw"]

LABELS = ("background", "kidney", "tumour")
_FAT, _URINE, _BLOOD = -100, 8, 45
# HU that contrast agent adds
_CONTRAST = {"liver": 40, "spleen": 70, "left psoas": 6, "right psoas": 6}
# of the right kidney; the left one lies higher
_KIDNEY = (0.34, -0.3, -0.15)
_DROP = 0.06


def draw(rng: np.random.RandomState) -> Iterator[tuple[MetaTensor, MetaTensor]]:
    """The middle of a small trunk, in slices of 2 to 3.5 mm; one or two tumours, sometimes a cyst."""
    in_plane, thickness = round(rng.uniform(0.7, 0.9), 3), rng.choice([2.0, 2.5, 3.0, 3.5])
    spacing = (in_plane, in_plane, thickness)
    shape = (rng.randint(96, 105), rng.randint(80, 85), round(96 / thickness))
    points = grid(shape) * np.array([0.9, 0.96, 0.33], dtype=np.float32).reshape(3, 1, 1, 1)
    points[2] -= 0.11
    points = abdomen.pose(points, rng)
    tissue, organs, bone = abdomen.trunk(points, rng)
    drop = _DROP * (points[0] > 0)
    mirrored = np.stack([np.abs(points[0]), points[1], points[2] + drop])  # both kidneys lie where the right one does

    strength = rng.uniform(0.7, 1.2)
    for name, rise in _CONTRAST.items():
        tissue[organs[name] & ~bone] += strength * rise
    kidneys = (organs["left kidney"] | organs["right kidney"]) & ~bone
    _vessels(tissue, points, mirrored, bone, strength, rng)
    _perfuse(tissue, mirrored, kidneys, strength, rng)
    label = kidneys.astype(np.uint8)
    for _ in range(rng.choice([1, 1, 2])):
        _tumour(tissue, label, points, bone, strength, rng)
    image = scanner.tomogram(tissue, rng)
    yield scanner.place(image, spacing), scanner.place(label[None], spacing)


def _vessels(
    tissue: np.ndarray,
    points: np.ndarray,
    mirrored: np.ndarray,
    bone: np.ndarray,
    strength: float,
    rng: np.random.RandomState,
) -> None:
    """The great vessels and those of the kidneys; the vena cava fills later than the aorta."""
    artery = _BLOOD + strength * rng.uniform(90, 170)
    vein = _BLOOD + rng.uniform(0.3, 0.9) * (artery - _BLOOD)
    to_kidney = tube(mirrored, ((0.03, -0.2, -0.08, 0.025), (0.25, -0.23, -0.15, 0.03))) < 1
    tissue[to_kidney & ~bone] = vein
    tissue[(tube(points, abdomen.CAVA) < 1) & ~bone] = vein
    tissue[(tube(points, abdomen.AORTA) < 1) & ~bone] = artery


def _perfuse(
    tissue: np.ndarray, mirrored: np.ndarray, kidneys: np.ndarray, strength: float, rng: np.random.RandomState
) -> None:
    """Cortex brighter than the pyramids, less so the later the scan; fat and urine in the sinus."""
    sinus = ellipsoid(mirrored, np.add(_KIDNEY, (-0.08, 0.05, 0)), (0.08, 0.07, 0.12))
    tissue[(sinus < 1) & ~kidneys & (tissue < 60)] = _FAT
    tissue[(sinus < 0.5) & ~kidneys] = _URINE
    inner = ellipsoid(mirrored, _KIDNEY, (0.1, 0.12, 0.18)) < 1
    pyramid = inner & (smooth_field(rng, tissue.shape, (7, 16)) > -0.3)
    tissue[kidneys] += strength * np.where(pyramid, rng.uniform(50, 130), 130)[kidneys]


def _tumour(
    tissue: np.ndarray,
    label: np.ndarray,
    points: np.ndarray,
    bone: np.ndarray,
    strength: float,
    rng: np.random.RandomState,
) -> None:
    """A round mass that grows out of a kidney, dead in the middle or not, and now and then a cyst."""
    kidneys = points[:, label == LABELS.index("kidney")]
    seed, other = (kidneys[:, rng.randint(kidneys.shape[1])] for _ in range(2))
    middle = np.multiply(_KIDNEY, (np.sign(seed[0]), 1, 1))
    if rng.rand() < 0.3:  # a cyst counts as kidney
        cyst = ellipsoid(points, other, np.full(3, rng.uniform(0.03, 0.07)))
        tissue[(cyst < 1) & (label > 0)] = _URINE
    size = rng.uniform(0.07, 0.19)
    centre = middle + (seed - middle) * rng.uniform(0.9, 1.3)
    reach = ellipsoid(bend(points, rng, amount=0.015, waves=6), centre, size * rng.uniform(0.85, 1.15, 3))
    inside = (reach < 1) & (tissue > -300) & ~bone & (abdomen.body(points) < 0.85)
    texture = smooth_field(rng, tissue.shape, (5, 14))
    dead = (reach < rng.uniform(0.2, 0.7)) & (texture > -0.5)
    solid = 35 + strength * rng.uniform(15, 80) + rng.uniform(5, 18) * texture
    tissue[inside] = np.where(dead, 18, solid)[inside]
    label[inside] = LABELS.index("tumour")
