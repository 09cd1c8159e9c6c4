# SPDX-License-Identifier: Apache-2.0
"""Dermoscopic pictures of pigmented lesions, as in the ISIC 2017 challenge.

Arrays are (columns, rows) as MONAI loads pictures; rows count from the top. Places and sizes are in units of half the
shorter side.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from monai_attn.data.phantom import scanner
from monai_attn.data.phantom.shapes import bend, grid, smooth_field, tube, turn

__all__ = ["LABELS", "VALUES", "draw"]

LABELS = ("skin", "lesion")
VALUES = (0, 255)  # as in the masks of the challenge
# red, green and blue of skin under the light of a dermoscope
_SKINS = ((234, 196, 184), (224, 172, 154), (206, 160, 132), (200, 204, 220), (226, 150, 138), (236, 214, 202))
# what is left of red, green and blue light behind a layer of pigment
_PIGMENTS = {
    "light brown": (0.84, 0.68, 0.54),
    "brown": (0.64, 0.46, 0.36),
    "dark brown": (0.42, 0.29, 0.24),
    "black": (0.24, 0.19, 0.2),
    "blue grey": (0.52, 0.56, 0.66),
    "red": (0.92, 0.6, 0.56),
}


def draw(rng: np.random.RandomState) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One lesion on skin, often with hairs, now and then with a ruler or dark corners; some are hard to see."""
    width = rng.randint(128, 201)
    shape = (width, round(rng.uniform(0.75, 0.8) * width))
    points = grid(shape) * (np.array(shape, dtype=np.float32) / min(shape)).reshape(2, 1, 1)

    reach = _lesion(points, rng)
    light = np.asarray(_SKINS[rng.randint(len(_SKINS))], dtype=np.float32) * rng.uniform(0.88, 1.05)
    tone = 1 + 0.04 * smooth_field(rng, shape, 2) + 0.018 * smooth_field(rng, shape, (8, 30))
    blush = np.stack([0 * tone, *[0.02 * smooth_field(rng, shape, (3, 12))] * 2])
    colour = light.reshape(3, 1, 1) * (tone + blush) * _pigment(points, reach, rng)
    if rng.rand() < 0.6:
        colour = _hairs(colour, points, rng)
    if rng.rand() < 0.25:
        colour = _ruler(colour, points, rng)
    distance = np.sqrt((points**2).sum(axis=0))
    dark_corners = rng.rand() < 0.25
    frame = rng.uniform(0.7, 0.95) * distance.max() if dark_corners else np.inf  # radius of what the dermoscope shows
    colour *= 1 - rng.uniform(0, 0.12) * distance**2
    colour *= 0.04 + 0.96 / (1 + np.exp(((distance - frame) / 0.02).clip(-50, 50)))

    image = scanner.noise(scanner.blur(colour, sigma=rng.uniform(0.4, 0.9)), rng, sigma=rng.uniform(1, 4))
    label = np.where((reach < 1) & (distance < frame), np.uint8(255), np.uint8(0))
    yield image.clamp(0, 255).round().to(torch.uint8), torch.as_tensor(label[None])


def _lesion(points: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Distance from the middle of the lesion in units of its radius: its border is uneven, its halves differ."""
    size = rng.uniform(0.22, 0.95)
    centre = rng.uniform(-0.45, 0.45, 2) * (1.1 - size)
    inner = turn(bend(points - centre.reshape(2, 1, 1).astype(np.float32), rng, amount=0.05), rng, degrees=180)
    x, y = inner / (size * np.array([1, rng.uniform(0.6, 1)], dtype=np.float32).reshape(2, 1, 1))
    angle, roughness = np.arctan2(y, x), rng.uniform(0.03, 0.2)
    radius = sum(rng.randn() / k * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in range(2, 12))
    reach: np.ndarray = np.sqrt(x**2 + y**2) / np.exp(roughness * radius)
    return reach


def _pigment(points: np.ndarray, reach: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """What a lesion of one to three pigments, a darker core and a net leaves of the light (3, columns, rows)."""
    shape = reach.shape
    names = rng.choice(list(_PIGMENTS), rng.randint(1, 4), replace=False)
    weights = np.exp(3 * np.stack([smooth_field(rng, shape, 5) for _ in names]))
    absorption = -np.log(np.stack([_PIGMENTS[name] for name in names]))
    softness = rng.uniform(0.02, 0.12) * np.exp(0.4 * smooth_field(rng, shape, 4))
    amount = 1 / (1 + np.exp(((reach - 0.98) / softness).clip(-50, 50)))
    amount *= 1 + rng.uniform(-0.2, 0.5) * np.exp(-((reach / 0.5) ** 2))
    amount *= 1 + 0.12 * smooth_field(rng, shape, 8) + rng.uniform(0.05, 0.2) * smooth_field(rng, shape, (12, 40))
    strength = rng.uniform(0.25, 0.6) if rng.rand() < 0.3 else rng.uniform(0.7, 1.1)  # some are pale
    left: np.ndarray = np.exp(-strength * amount * np.einsum("pc,pxy->cxy", absorption, weights / weights.sum(axis=0)))
    return left


def _hairs(colour: np.ndarray, points: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Bent hairs of one person's colour and one rough direction."""
    hair = np.asarray(rng.choice([25, 50, 90])) * np.array([1, 0.8, 0.65]).reshape(3, 1, 1)
    direction, pixel = rng.uniform(0, 2 * np.pi), 2 / min(colour.shape[1:])
    for _ in range(rng.randint(3, 26)):
        angle = direction + 0.5 * rng.randn() + np.linspace(0, 1, 5) * rng.uniform(-1.2, 1.2)
        steps = rng.uniform(0.1, 0.35) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        path = rng.uniform(-1.4, 1.4, 2) + np.cumsum(steps, axis=0)
        width = np.linspace(rng.uniform(0.4, 0.9), 0.25, 5)[:, None] * pixel
        cover = np.clip(1.6 - tube(points, np.concatenate([path, width], axis=1)), 0, 1) * rng.uniform(0.6, 0.95)
        colour = colour * (1 - cover) + hair * cover
    return colour


def _ruler(colour: np.ndarray, points: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Ticks of a scale along one edge of the picture, every fifth longer."""
    axis = rng.randint(2)
    along, across = points[axis], points[1 - axis] * rng.choice([-1, 1])
    step, edge = rng.uniform(0.1, 0.2), across.max()
    number = np.round(along / step)
    length = np.where(number % 5 == 0, 0.2, 0.11)
    tick = (np.abs(along - number * step) < 1.2 / min(colour.shape[1:])) & (across > edge - length)
    return np.where(tick, 40, colour)
