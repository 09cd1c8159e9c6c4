# SPDX-License-Identifier: Apache-2.0
"""Resampling of a volume without the coordinates of all its voxels at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["ResampleBySlabs"]


class ResampleBySlabs(TorchFunctionMode):
    """A context in which ``affine_grid`` and ``grid_sample``, one behind the other, resample a volume slab by slab.

    MONAI resamples with double precision, so that the grid and what it is computed from take as much memory as 14
    channels of the volume in single precision. Here they are made for a few planes at a time, by the same operations:
    the values are the same, and it is faster. Images in 2D, and grids of other uses, are not for this context.

    Args:
        planes: planes of a slab.

    Example:
        >>> theta, volume = torch.eye(3, 4)[None], torch.rand(1, 1, 9, 8, 7)
        >>> with ResampleBySlabs(planes=4):
        ...     grid = torch.nn.functional.affine_grid(theta, [1, 1, 5, 6, 7], align_corners=False)
        ...     torch.nn.functional.grid_sample(volume, grid, align_corners=False).shape
        torch.Size([1, 1, 5, 6, 7])
    """

    def __init__(self, planes: int = 8) -> None:
        super().__init__()
        self.planes = planes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hold the grid back until there is something to sample."""
        kwargs = kwargs or {}
        if func is F.affine_grid:
            call = {**dict(zip(("theta", "size", "align_corners"), args)), **kwargs}
            return _Grid(call["theta"], tuple(call["size"]), bool(call.get("align_corners")))
        if func is F.grid_sample:
            names = ("input", "grid", "mode", "padding_mode", "align_corners")
            call = {**dict(zip(names, args)), **kwargs}
            return self._sample(call.pop("input"), call.pop("grid"), call)
        return func(*args, **kwargs)

    def _sample(self, volume: torch.Tensor, grid: _Grid, options: dict[str, Any]) -> torch.Tensor:
        depth = grid.size[2]
        output = volume.new_empty(*volume.shape[:2], *grid.size[2:])
        for start in range(0, depth, self.planes):
            stop = min(start + self.planes, depth)
            output[:, :, start:stop] = F.grid_sample(volume, grid.planes(start, stop), **options)
        return output


class _Grid(NamedTuple):
    """The arguments of ``affine_grid``."""

    theta: torch.Tensor
    size: tuple[int, ...]
    align_corners: bool

    def planes(self, start: int, stop: int) -> torch.Tensor:
        """The sampling points (N, planes, H, W, 3) of some planes."""
        number, _, depth, height, width = self.size
        points = self.theta.new_ones(number, stop - start, height, width, 4)
        points[..., 0] = self._centres(width)
        points[..., 1] = self._centres(height)[:, None]
        points[..., 2] = self._centres(depth)[start:stop, None, None]
        return points.flatten(1, 3).bmm(self.theta.transpose(1, 2)).unflatten(1, points.shape[1:4])

    def _centres(self, count: int) -> torch.Tensor:
        """Where voxels lie between -1 and 1, in the order of operations of torch, which decides on the last bit."""
        if count == 1:
            return self.theta.new_zeros(1)
        ends = torch.linspace(-1, 1, count, dtype=self.theta.dtype, device=self.theta.device)
        return ends if self.align_corners else ends * (count - 1) / count
