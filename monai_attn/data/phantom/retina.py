# SPDX-License-Identifier: Apache-2.0
"""Two scans through each of many retinas in optical coherence tomography, as in the Duke DME data (Chiu et al., 2015).

Arrays are (columns, rows) as MONAI loads pictures; rows count from the top, from the vitreous to the choroid.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from monai_attn.data.phantom import scanner
from monai_attn.data.phantom.shapes import grid, smooth_field

__all__ = ["LABELS", "SCANS", "draw"]

LABELS = (
    "above retina",
    "NFL",
    "GCL-IPL",
    "INL",
    "OPL",
    "ONL-ISM",
    "ISE",
    "OS-RPE",
    "below retina",
    "fluid",
)
SCANS = 2
_SHAPE = (256, 160)
_BRIGHTNESS = (9, 120, 88, 62, 90, 46, 140, 165, 80, 12)
# of the seven layers: thickness in rows, and what of it is missing in the middle of the fovea
_THICKNESS = (5.0, 11.5, 6.5, 5.5, 13.0, 3.6, 5.0)
_PIT = (0.95, 0.93, 0.75, 0.45, -0.35, -0.1, 0.0)
_INL, _OPL, _ONL = (LABELS.index(name) for name in ("INL", "OPL", "ONL-ISM"))


def draw(rng: np.random.RandomState) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The scans of one subject: one through the fovea, one beside it. The first has fluid, the second may have."""
    fovea, nasal = rng.uniform(-0.3, 0.3), rng.choice([-1, 1])
    thickness = np.multiply(_THICKNESS, rng.uniform(0.85, 1.2) * rng.uniform(0.9, 1.1, len(_THICKNESS)))
    brightness = np.multiply(_BRIGHTNESS, rng.uniform(0.8, 1.15) * rng.uniform(0.92, 1.08, len(_BRIGHTNESS)))
    tilt, bow = rng.uniform(-12, 12), rng.uniform(-12, 6)
    for scan in range(SCANS):
        pit = rng.uniform(0.75, 1.0) if scan == 0 else rng.uniform(0.0, 0.5)
        blobs = rng.randint(1, 6) if scan == 0 else rng.randint(0, 5)
        curves, label = _layers(rng, thickness, fovea, nasal, pit, (tilt + rng.uniform(-3, 3), bow), blobs)
        yield _scan(rng, curves, label, brightness), torch.as_tensor(label[None])


def _layers(
    rng: np.random.RandomState,
    thickness: np.ndarray,
    fovea: float,
    nasal: int,
    pit: float,
    pose: tuple[float, float],
    blobs: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The borders (8, columns) between the layers, and the label map with fluid."""
    columns, rows = _SHAPE
    across = np.linspace(-1, 1, columns)
    dip = pit * np.exp(-(((across - fovea) / 0.17) ** 2))
    rim = 1 + 0.3 * pit * np.exp(-(((np.abs(across - fovea) - 0.38) / 0.18) ** 2))
    layers = np.stack([t * (1 - missing * dip) for t, missing in zip(thickness, _PIT)])
    layers[0] *= 1 + 0.5 * nasal * across
    layers[1] *= rim
    layers *= np.stack([1 + 0.07 * smooth_field(rng, (columns,), 14) for _ in layers])

    # fluid pushes the layer that it collects in apart
    pockets = []
    for _ in range(blobs):
        layer = rng.choice([_INL, _ONL])
        centre, width = fovea + 0.35 * rng.randn(), rng.uniform(0.05, 0.16)
        layers[layer - 1] += rng.uniform(5, 16) * np.exp(-(((across - centre) / (1.2 * width)) ** 2))
        pockets.append((layer, centre, width))
    layers = layers.clip(min=1.2)

    tilt, bow = pose
    bottom = 0.66 * rows + rng.uniform(-8, 8) + tilt * across + bow * across**2 + smooth_field(rng, (columns,), 8)
    curves = bottom - np.concatenate([np.cumsum(layers[::-1], axis=0)[::-1], np.zeros((1, columns))])
    row = np.arange(rows)[None, :]
    label = sum((row >= curve[:, None]).astype(np.uint8) for curve in curves)
    wobble = 1 + 0.18 * smooth_field(rng, _SHAPE, (4, 20))
    for layer, centre, width in pockets:
        middle, half = (curves[layer - 1] + curves[layer]) / 2, 0.42 * layers[layer - 1]
        inside = ((across - centre) / width)[:, None] ** 2 + ((row - middle[:, None]) / half[:, None]) ** 2 < wobble
        label[inside & (label == layer)] = LABELS.index("fluid")
    return curves, label


def _scan(rng: np.random.RandomState, curves: np.ndarray, label: np.ndarray, brightness: np.ndarray) -> torch.Tensor:
    """What the scanner sees of the layers: choroid fading with depth, shadows of vessels, bright specks, speckle."""
    across, _ = grid(_SHAPE)
    row = np.arange(_SHAPE[1])[None, :]
    tissue = brightness[label] * (1 + 0.06 * smooth_field(rng, _SHAPE, (12, 40)))
    below = row - curves[-1][:, None]
    choroid = brightness[8] * np.exp(-below / rng.uniform(14, 26)) * (1 + 0.3 * smooth_field(rng, _SHAPE, (8, 30))) + 6
    tissue = np.where(below >= 0, choroid, tissue)
    limiting = curves[4] + 0.72 * (curves[5] - curves[4])  # the external limiting membrane, a faint line
    tissue += 22 * np.exp(-((row - limiting[:, None]) ** 2)) * (label == _ONL)

    specks = (rng.rand(*_SHAPE) < 0.006) & (label >= _INL) & (label <= _ONL)
    tissue = np.where(specks, 2.2 * brightness[_OPL], tissue)
    for _ in range(rng.randint(3, 9)):
        vessel = np.exp(-(((across - rng.uniform(-1, 1)) / rng.uniform(0.008, 0.022)) ** 2))
        depth = row - curves[1][:, None]
        tissue = tissue * (1 - rng.uniform(0.3, 0.75) * vessel / (1 + np.exp(-depth)))
        tissue += 50 * vessel * np.exp(-((depth / 2.5) ** 2))
    tissue = tissue * (1 + 0.13 * smooth_field(rng, _SHAPE[:1], 5))[:, None]

    image = scanner.speckle(scanner.blur(tissue[None], sigma=(0.9, 0.6)), rng, looks=4.0)
    image = scanner.noise(scanner.blur(image, sigma=0.45), rng, sigma=8)
    return image.abs().clamp(max=255).round().to(torch.uint8)
