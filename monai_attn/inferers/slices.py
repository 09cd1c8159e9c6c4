# SPDX-License-Identifier: Apache-2.0
"""A 2D network over a 3D volume, by batches of whole slices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

__all__ = ["SliceBatchInferer"]


class SliceBatchInferer(Inferer):
    """Run a 2D network over every slice of a volume, many slices at once.

    The slices are whole, so that the result is that of the network on each slice alone. (MONAI's ``SliceInferer``
    slides a window of a given size over each slice, which needs that size and pads what is smaller.) Beside the output
    there is only one batch at a time.

    Args:
        spatial_dim: the spatial axis to cut across, 0, 1 or 2, as in training.
        batch_size: number of slices in one call of the network.

    Raises:
        ValueError: if ``batch_size`` is below 1, or if the input is not a batch of volumes.

    Example:
        >>> SliceBatchInferer(spatial_dim=2)(torch.rand(1, 1, 8, 9, 10), torch.nn.Conv2d(1, 3, 1)).shape
        torch.Size([1, 3, 8, 9, 10])
    """

    def __init__(self, spatial_dim: int = 2, batch_size: int = 16) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.axis = spatial_dim + 2
        self.batch_size = batch_size

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Map volumes (B, C, H, W, D) to the network's output (B, C', H, W, D)."""
        if inputs.ndim != 5:
            raise ValueError(f"inputs must be volumes (B, C, H, W, D), got a tensor of shape {tuple(inputs.shape)}.")
        volumes = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        slices = volumes.movedim(self.axis, 1).flatten(0, 1)  # (B * depth, C, *slice)
        output = volumes
        for start in range(0, len(slices), self.batch_size):
            batch = slices[start : start + self.batch_size].contiguous(memory_format=torch.channels_last)
            result = network(batch, *args, **kwargs)
            if start == 0:  # the only tensor of the output's size
                output = result.new_empty(len(volumes), result.shape[1], *volumes.shape[2:])
            self._insert(output, result, start)
        return convert_to_dst_type(output, inputs, dtype=output.dtype)[0]

    def _insert(self, output: torch.Tensor, slices: torch.Tensor, start: int) -> None:
        """Put slices (n, C', *slice) into the volumes, where ``start`` counts the slices of all of them."""
        depth = output.shape[self.axis]
        for index in range(start // depth, (start + len(slices) - 1) // depth + 1):
            first, last = max(start, index * depth), min(start + len(slices), (index + 1) * depth)
            planes = output[index].narrow(self.axis - 1, first - index * depth, last - first)
            planes.copy_(slices[first - start : last - start].movedim(0, self.axis - 1))
