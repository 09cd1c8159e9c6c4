# SPDX-License-Identifier: Apache-2.0
"""Where one segmentation is most better than another: the boxes of Figs. 5 and 6 of the scSE paper, found by rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

__all__ = ["Region", "improved_region"]


class Region(NamedTuple):
    """A box in an image.

    Attributes:
        start: its first voxel along each spatial axis.
        size: its number of voxels along each.

    Example:
        >>> Region(start=(4, 8), size=(16, 16)).start
        (4, 8)
    """

    start: tuple[int, ...]
    size: tuple[int, ...]


def improved_region(
    truth: torch.Tensor, worse: torch.Tensor, better: torch.Tensor, size: Sequence[int] | None = None
) -> Region:
    """The box in which one segmentation has most more voxels right than another, the first of equal ones.

    Args:
        truth: label map (1, *spatial), 2D or 3D.
        worse: a segmentation of the same shape.
        better: the one that the box is to speak for.
        size: voxels of the box along each axis; by default a quarter of the image, and at least 3.

    Raises:
        ValueError: if the shapes differ, or the box is larger than the image.

    Example:
        >>> truth = torch.zeros(1, 8, 8)
        >>> truth[0, 4:6, 1:4] = 1
        >>> improved_region(truth, torch.zeros(1, 8, 8), truth, size=(2, 3))
        Region(start=(4, 1), size=(2, 3))
    """
    whole = tuple(truth.shape[1:])
    box = tuple(size) if size is not None else tuple(min(length, max(3, length // 4)) for length in whole)
    if worse.shape != truth.shape or better.shape != truth.shape:
        raise ValueError(
            f"the label maps have shapes {tuple(truth.shape)}, {tuple(worse.shape)} and {tuple(better.shape)}; put "
            "them on one grid first."
        )
    if len(box) != len(whole) or any(length > limit for length, limit in zip(box, whole)):
        raise ValueError(f"size must be at most the image's {whole}, got {box}.")
    truth, worse, better = (torch.as_tensor(label).cpu() for label in (truth, worse, better))
    gain = (better == truth).float() - (worse == truth).float()
    pool = F.avg_pool2d if len(whole) == 2 else F.avg_pool3d
    gained = pool(gain[None], box, stride=1)[0, 0]
    start = torch.unravel_index((gained * gain[0].numel()).round().argmax(), gained.shape)
    return Region(tuple(int(place) for place in start), box)
