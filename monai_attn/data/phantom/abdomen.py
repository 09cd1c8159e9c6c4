# SPDX-License-Identifier: Apache-2.0
"""A trunk in computed tomography without contrast agent, with ten organs as in the Visceral Anatomy challenge.

Places and sizes are in units of half the image: x to the right, y to the front, z to the head. Brightness is in HU.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from monai_attn.data.phantom import scanner
from monai_attn.data.phantom.shapes import bend, ellipsoid, grid, smooth_field, tube, turn

__all__ = ["AORTA", "CAVA", "LABELS", "body", "draw", "pose", "trunk"]

LABELS = (
    "background",
    "liver",
    "right lung",
    "left lung",
    "right kidney",
    "left kidney",
    "spleen",
    "right psoas",
    "left psoas",
    "trachea",
    "urinary bladder",
)
_AIR, _FAT, _WATER, _BLOOD, _MUSCLE, _MARROW, _BONE = -1000, -100, 20, 42, 52, 190, 450
# mean HU and its deviation among patients
_BRIGHTNESS = {
    "liver": (57, 5),
    "lung": (-830, 25),
    "kidney": (33, 3),
    "spleen": (48, 3),
    "psoas": (_MUSCLE, 3),
    "trachea": (-985, 5),
    "urinary bladder": (7, 3),
}
# the great vessels: corners and radii
AORTA = ((-0.07, -0.1, 0.58, 0.07), (-0.08, -0.22, 0.4, 0.06), (-0.05, -0.21, -0.4, 0.05))
CAVA = ((0.08, 0.0, 0.3, 0.06), (0.08, -0.19, 0.0, 0.055), (0.06, -0.2, -0.42, 0.05))
# outline of the body: height, half its width, half its depth
_OUTLINE = (
    (-1.1, 0.86, 0.68),
    (-0.6, 0.84, 0.66),
    (-0.2, 0.77, 0.62),
    (0.3, 0.83, 0.68),
    (0.65, 0.84, 0.66),
    (0.85, 0.66, 0.52),
    (1.1, 0.3, 0.36),
)


def draw(rng: np.random.RandomState) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A trunk from the neck to the hips of half an adult's size, in voxels of 2 mm."""
    shape = tuple(rng.randint(side - 4, side + 5) for side in (96, 72, 120))
    points = pose(grid(shape), rng)
    tissue, organs, bone = trunk(points, rng)
    label = np.zeros(shape, dtype=np.uint8)
    for name, inside in organs.items():
        label[inside] = LABELS.index(name)
    label[bone] = 0
    yield scanner.tomogram(tissue, rng), torch.as_tensor(label[None])


def pose(points: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Turn, stretch and bend the points (3, ...) of an image as one patient differs from another."""
    points = turn(points, rng, degrees=3) * rng.uniform(0.92, 1.04, (3, 1, 1, 1)).astype(np.float32)
    return bend(points, rng, amount=0.025)


def body(points: np.ndarray) -> np.ndarray:
    """Distance of points (3, ...) from the middle of the body in units of its size there: below 1 is inside."""
    heights, widths, depths = np.transpose(_OUTLINE).astype(np.float32)
    width, depth = np.interp(points[2], heights, widths), np.interp(points[2], heights, depths)
    reach: np.ndarray = (np.abs(points[0]) / width) ** 2.4 + (np.abs(points[1]) / depth) ** 2.4
    return reach ** np.float32(1 / 2.4)


def trunk(points: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """What a trunk is made of.

    Args:
        points: points (3, ...) in units of half the trunk; a part of it is drawn if they cover a part only.
        rng: random state.

    Returns:
        brightness in HU, where each organ is by its name in ``LABELS``, and where bone is, each of shape (...).
    """
    texture = smooth_field(rng, points.shape[1:], (9, 26))
    skin = body(points)
    wall = rng.uniform(0.84, 0.95)  # below the fat
    tissue = np.where(skin < wall, _MUSCLE, np.where(skin < 1, _FAT, _AIR)).astype(np.float32)
    tissue[(skin > 1) & (np.abs(points[1] + 0.86 - 0.1 * points[0] ** 2) < 0.02)] = -400  # the table
    cavity = (skin < wall - 0.13) & (points[1] > -0.42 + 0.25 * np.exp(-((points[0] / 0.25) ** 2)))

    organs = _organs(points, skin / wall < 0.86, cavity, rng)
    _fill(tissue, points, cavity, rng)
    for name, inside in organs.items():
        mean, deviation = _BRIGHTNESS[name.removeprefix("left ").removeprefix("right ")]
        tissue[inside] = mean + deviation * rng.randn()
        if name.endswith("lung"):  # vessels, and more blood at the back
            tissue[inside] += 250 * np.clip(texture[inside] - 1.2, 0, 2) - 70 * points[1][inside]
        elif name != "trachea":
            tissue[inside] += 4 * texture[inside]
    return tissue, organs, _bones(tissue, points, skin / wall)


def _organs(
    points: np.ndarray, chest: np.ndarray, cavity: np.ndarray, rng: np.random.RandomState
) -> dict[str, np.ndarray]:
    """Where each organ is; they do not overlap but where a later one lies over an earlier one."""
    x, y, z = points

    def blob(centre: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        return ellipsoid(points, np.add(centre, 0.02 * rng.randn(3)), np.multiply(radii, rng.uniform(0.9, 1.1, 3)))

    dome = 0.12 + 0.17 * (1 - ((np.abs(x) - 0.36) / 0.45) ** 2 - ((y - 0.08) / 0.6) ** 2) + 0.05 * np.tanh(4 * x)
    dome = dome + rng.uniform(-0.06, 0.06)  # how deeply the patient breathed in
    found = {}
    liver = (blob((0.38, 0.06, 0.02), (0.44, 0.54, 0.36)) < 1) | (blob((0.02, 0.3, 0.1), (0.4, 0.26, 0.17)) < 1)
    found["liver"] = liver & cavity & (z < dome - 0.02)
    heart = blob((-0.1, 0.18, 0.4), (0.3, 0.32, 0.24)) < 1.05
    for side, sign in (("right", 1), ("left", -1)):
        reach = blob((0.41 * sign, -0.05, 0.24), (0.36, 0.58, 0.62))
        found[f"{side} lung"] = (reach < 1) & chest & (z > dome) & ~heart
    found["spleen"] = (blob((-0.52, -0.17, 0.07), (0.22, 0.34, 0.26)) < 1) & (
        (blob((-0.27, 0.02, 0.08), (0.22, 0.3, 0.3)) > 1) & (z < dome - 0.02) & cavity & ~found["liver"]
    )
    for side, sign, drop in (("right", 1, 0.06), ("left", -1, 0.0)):
        sinus = ellipsoid(points, (0.23 * sign, -0.24, -0.15 - drop), (0.08, 0.08, 0.12)) < 1
        kidney = (blob((0.34 * sign, -0.3, -0.15 - drop), (0.14, 0.17, 0.25)) < 1) & ~sinus
        found[f"{side} kidney"] = kidney
        for name in ("liver", "spleen"):
            found[name] &= ellipsoid(points, (0.34 * sign, -0.3, -0.15 - drop), (0.17, 0.2, 0.29)) > 1
    size = rng.uniform(0.85, 1.15)
    for side, sign in (("right", 1), ("left", -1)):
        path = ((0.14, -0.32, 0.0, 0.05), (0.19, -0.3, -0.3, 0.1), (0.28, -0.16, -0.62, 0.1), (0.37, 0.1, -0.9, 0.06))
        psoas = tube(points, [(sign * a, b, c, size * r) for a, b, c, r in path]) < 1
        found[f"{side} psoas"] = psoas & ~found[f"{side} kidney"]
    full = rng.uniform(0.7, 1.25)
    found["urinary bladder"] = blob((0.0, 0.14, -0.8), (0.25 * full, 0.21 * full, 0.15 * full)) < 1
    found["trachea"] = tube(points, ((0, -0.02, 1.3, 0.07), (0, -0.13, 0.56, 0.06))) < 1
    return found


def _fill(tissue: np.ndarray, points: np.ndarray, cavity: np.ndarray, rng: np.random.RandomState) -> None:
    """What lies between the organs: fat, vessels, heart, stomach and bowel with gas."""
    x, y, z = points
    tissue[cavity] = np.where(z > 0.25, 10, _FAT)[cavity]
    loops, gas = smooth_field(rng, tissue.shape, (5, 11)), smooth_field(rng, tissue.shape, (3, 9))
    belly = cavity & (z < 0.05) & (y > -0.22)
    tissue[belly & (loops > -0.1)] = 28
    tissue[belly & (loops > 0.4) & (gas + y > 1.5)] = -850
    around_kidneys = ellipsoid(np.stack([np.abs(x), y, z]), (0.33, -0.3, -0.17), (0.19, 0.2, 0.3)) < 1
    tissue[around_kidneys] = _FAT
    stomach = (ellipsoid(points, (-0.3, 0.2, 0.04), (0.24, 0.32, 0.17)) < 1) & cavity
    tissue[stomach] = np.where(y > 0.36, -900, _WATER)[stomach]
    tissue[ellipsoid(points, (-0.1, 0.18, 0.4), (0.3, 0.32, 0.24)) < 1] = _BLOOD
    for path in (AORTA, CAVA):
        tissue[tube(points, path) < 1] = _BLOOD
    for sign in (1, -1):
        tissue[tube(points, ((0, -0.13, 0.56, 0.05), (0.22 * sign, -0.12, 0.4, 0.04))) < 1] = -960


def _bones(tissue: np.ndarray, points: np.ndarray, wall: np.ndarray) -> np.ndarray:
    """Draw spine, ribs, breastbone, hip bones and thighs; returns where they are."""
    x, y, z = np.abs(points[0]), points[1], points[2]
    middle = -0.4 - 0.04 * np.cos(np.pi * z)
    body = np.sqrt((x / 0.14) ** 2 + ((y - middle) / 0.12) ** 2)
    disc = np.mod(z / 0.15, 1) < 0.2
    canal = np.sqrt((x / 0.06) ** 2 + ((y - middle + 0.155) / 0.05) ** 2)
    arch = (
        (canal < 1.6)
        | ((x < 0.03) & (np.abs(y - middle + 0.22) < 0.05))
        | ((x < 0.22) & (np.abs(y - middle + 0.15) < 0.03))
    )
    hips = np.sqrt((x / 0.62) ** 2 + ((y - 0.0) / 0.5) ** 2 + ((z + 0.72) / 0.5) ** 2)
    thigh = np.sqrt(((x - 0.52) / 0.13) ** 2 + ((y - 0.02) / 0.14) ** 2 + ((z + 0.95) / 0.13) ** 2)
    hard = (np.abs(wall - 0.9) < 0.035) & (z > 0.0) & (z < 0.85) & (np.sin(2 * np.pi * (z + 0.3 * y) / 0.17) > 0.2)
    hard &= (x > 0.15) | (y < 0)
    hard |= (np.abs(wall - 0.9) < 0.04) & (x < 0.08) & (y > 0) & (np.abs(z - 0.48) < 0.25)
    hard |= (np.abs(hips - 1) < 0.06) & (x > 0.28) & (z < -0.4) & (y < 0.15)
    hard |= (np.abs(thigh - 0.9) < 0.1) | (arch & ~disc) | ((body < 1) & (body > 0.82))
    hard &= wall < 1
    soft = ((body < 0.82) & ~disc) | (thigh < 0.8)
    tissue[(body < 1) & disc] = 85
    tissue[hard & ~((body < 1) & disc)] = _BONE
    tissue[soft] = _MARROW
    tissue[canal < 1] = _WATER
    return hard | soft | (body < 1) | (canal < 1)
