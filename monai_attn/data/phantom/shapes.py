# SPDX-License-Identifier: Apache-2.0
"""Shapes of made-up anatomy, as functions of points (D, ...) whose coordinates run from -1 to 1 across the image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from monai.transforms.utils import create_rotate
from numpy.typing import ArrayLike

__all__ = ["bend", "ellipsoid", "grid", "smooth_field", "tube", "turn"]


def grid(shape: Sequence[int]) -> np.ndarray:
    """The coordinates (D, *shape) of all voxels, from -1 to 1 along each axis."""
    axes = [np.linspace(-1, 1, side, dtype=np.float32) for side in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def smooth_field(rng: np.random.RandomState, shape: Sequence[int], waves: int | tuple[int, int] = 3) -> np.ndarray:
    """A random field without kinks: a sum of cosines with random weights.

    Args:
        rng: random state.
        shape: spatial shape of the field.
        waves: largest number of half-waves along an axis, or the smallest and the largest over all axes together.

    Returns:
        array of ``shape`` with standard deviation 1.
    """
    low, high = waves if isinstance(waves, tuple) else (0, waves)
    counts = np.meshgrid(*[np.arange(high + 1)] * len(shape), indexing="ij")
    total = np.sqrt(sum(count**2 for count in counts))
    field = np.where((total > low) & (total <= high), rng.randn(*total.shape), 0).astype(np.float32)
    for side in shape:
        cosines = np.cos(np.pi * np.outer(np.arange(high + 1), (np.arange(side) + 0.5) / side)).astype(np.float32)
        field = np.tensordot(field, cosines, axes=(0, 0))
    return field / max(float(field.std()), 1e-6)


def bend(points: np.ndarray, rng: np.random.RandomState, amount: float, waves: int = 3) -> np.ndarray:
    """Displace points by a smooth random field of the standard deviation ``amount``."""
    return points + amount * np.stack([smooth_field(rng, points.shape[1:], waves) for _ in points])


def turn(points: np.ndarray, rng: np.random.RandomState, degrees: float) -> np.ndarray:
    """Rotate points about the centre by a random angle of up to ``degrees`` about each axis."""
    dims = len(points)
    angles = np.deg2rad(rng.uniform(-degrees, degrees, 1 if dims == 2 else 3))
    rotation = np.asarray(create_rotate(dims, angles.tolist()))[:dims, :dims].astype(np.float32)
    return np.tensordot(rotation, points, axes=1)


def ellipsoid(points: np.ndarray, centre: ArrayLike, radii: ArrayLike) -> np.ndarray:
    """Distance of points from the centre in units of the radius: below 1 is inside."""
    return np.sqrt(sum(((axis - c) / r) ** 2 for axis, c, r in zip(points, np.asarray(centre), np.asarray(radii))))


def tube(points: np.ndarray, path: ArrayLike) -> np.ndarray:
    """Distance of points from a bent line in units of its radius: below 1 is inside.

    Args:
        points: points (D, ...).
        path: corners of the line, each with the D coordinates and the radius there.

    Returns:
        array of the shape of the points.
    """
    corners = np.asarray(path, dtype=np.float32)
    reach = np.full(points.shape[1:], np.inf, dtype=np.float32)
    for start, end in itertools.pairwise(corners):
        step = end - start
        offset = [axis - c for axis, c in zip(points, start)]
        along = np.clip(sum(o * s for o, s in zip(offset, step)) / (step[:-1] ** 2).sum(), 0, 1)
        squared = sum((o - along * s) ** 2 for o, s in zip(offset, step))
        reach = np.minimum(reach, np.sqrt(squared) / (start[-1] + along * step[-1]))
    return reach
