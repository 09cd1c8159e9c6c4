# SPDX-License-Identifier: Apache-2.0
"""Convolution stages, pooling and upsampling for encoder-decoders."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.utils import look_up_option
from torch import nn

__all__ = ["ConvStage", "DenseStage", "IndexUnpool", "MaxPoolWithIndices", "UpsampleTo"]


class ConvStage(nn.Sequential):
    """Stage of ``num_convs`` times convolution, norm, activation.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        in_channels, out_channels: numbers of channels.
        kernel_size: odd, so that the output has the input's size.
        num_convs: number of convolutions.
        act, norm: activation and normalization, as a name or ``(name, {args})``; ``None`` for none.

    Example:
        >>> ConvStage(2, 1, 64, kernel_size=7, norm="batch")(torch.rand(1, 1, 20, 30)).shape
        torch.Size([1, 64, 20, 30])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Sequence[int] | int = 3,
        num_convs: int = 1,
        act: str | tuple | None = "relu",
        norm: str | tuple | None = None,
    ) -> None:
        conv = partial(Convolution, spatial_dims, kernel_size=kernel_size, adn_ordering="NA", act=act, norm=norm)
        widths = [in_channels] + [out_channels] * num_convs
        super().__init__(*(conv(before, after) for before, after in pairwise(widths)))


class DenseStage(nn.Module):
    """Dense block of FC-DenseNet and QuickNAT (Sec. III-B).

    Twice norm, activation, convolution, each concatenated to its input, then norm, activation, 1x1 convolution. All
    three activations are one module: with ``act="prelu"`` they share one slope, as in the authors' code.

    Args:
        spatial_dims, in_channels, out_channels, act, norm: see :class:`ConvStage`.
        kernel_size: size of the first two kernels, odd.

    Example:
        >>> DenseStage(2, 64, 64)(torch.rand(1, 64, 20, 30)).shape
        torch.Size([1, 64, 20, 30])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: Sequence[int] | int = 5,
        act: str | tuple = "relu",
        norm: str | tuple = "batch",
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        channels = [in_channels + index * out_channels for index in range(3)]
        self.norm1, self.norm2, self.norm3 = (get_norm_layer(norm, spatial_dims, width) for width in channels)
        self.conv1 = conv(channels[0], out_channels, kernel_size, padding="same")
        self.conv2 = conv(channels[1], out_channels, kernel_size, padding="same")
        self.conv3 = conv(channels[2], out_channels, kernel_size=1)
        self.act = get_act_layer(act)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to (B, out_channels, *spatial)."""
        x = torch.cat([x, self.conv1(self.act(self.norm1(x)))], dim=1)
        x = torch.cat([x, self.conv2(self.act(self.norm2(x)))], dim=1)
        return self.conv3(self.act(self.norm3(x)))


class MaxPoolWithIndices(nn.Module):
    """Max pooling by two that also returns indices.

    An odd side is rounded up, so that any input size can be pooled to any depth.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self.pool = Pool[Pool.MAX, spatial_dims](kernel_size=2, ceil_mode=True, return_indices=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (B, C, *spatial) to the maxima and their flat indices, both (B, C, *half)."""
        return self.pool(x)


class IndexUnpool(nn.Module):
    """Max unpooling by indices (SD-Net, SegNet).

    Equal to ``torch.nn.functional.max_unpool*``, but can be scripted, traced and exported in any number of dimensions.
    If ``x`` has a multiple of the channels of ``indices`` (scSE by concatenation), they serve each group of channels.
    """

    def __init__(self, spatial_dims: int) -> None:
        super().__init__()
        self._axes = list(range(spatial_dims))

    def forward(self, x: torch.Tensor, size: list[int], indices: torch.Tensor) -> torch.Tensor:
        """Map ``x`` (B, C, *half), the ``size`` before pooling and its ``indices`` to (B, C, *size)."""
        indices = indices.flatten(2).repeat(1, x.shape[1] // indices.shape[1], 1)
        sides = [size[axis] for axis in self._axes]  # fx cannot iterate over a size
        voxels = 1
        for side in sides:
            voxels = voxels * side
        flat = x.new_zeros([x.shape[0], x.shape[1], voxels]).scatter(2, indices, x.flatten(2))
        return flat.reshape([x.shape[0], x.shape[1]] + sides)  # noqa: RUF005, TorchScript has no [*sides]


class UpsampleTo(nn.Module):
    """Interpolation to a given size (U-Net), without parameters.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        mode: ``"nearest"`` or ``"linear"`` (bilinear in 2D, trilinear in 3D).

    Raises:
        ValueError: if ``mode`` is neither of the two.
    """

    def __init__(self, spatial_dims: int, mode: Literal["nearest", "linear"] = "nearest") -> None:
        super().__init__()
        linear = ("linear", "bilinear", "trilinear")[spatial_dims - 1]
        self.mode = look_up_option(mode, {"nearest": "nearest", "linear": linear})

    def forward(self, x: torch.Tensor, size: list[int], indices: torch.Tensor | None = None) -> torch.Tensor:
        """Map ``x`` (B, C, *half) to (B, C, *size)."""
        return F.interpolate(x, size=size, mode=self.mode)
