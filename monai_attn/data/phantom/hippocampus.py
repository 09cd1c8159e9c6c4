# SPDX-License-Identifier: Apache-2.0
"""A hippocampus in a small field of view, as in the Medical Segmentation Decathlon."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from monai_attn.data.phantom import scanner

__all__ = ["LABELS", "draw"]

LABELS = ("background", "anterior", "posterior")


def draw(rng: np.random.RandomState) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
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

    texture = scanner.blur(rng.randn(1, *shape), sigma=2.0, border="constant")
    tissue = np.full(shape, 0.55)
    tissue[z > np.interp(y[0, :, 0], along, middle_z)[None, :, None] + 0.35] = 0.8  # white matter above
    tissue[(reach < 1.35) & (x > np.interp(y[0, :, 0], along, middle_x)[None, :, None])] = 0.25  # fluid beside
    tissue[inside] = 0.5
    blurred = scanner.blur(tissue[None], sigma=0.6, border="constant")
    image = scanner.bias_field(blurred + 0.8 * texture, rng)
    yield 100 * scanner.noise(image, rng, sigma=0.06).clamp(min=0), torch.as_tensor(label[None])
