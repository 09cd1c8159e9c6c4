# SPDX-License-Identifier: Apache-2.0
"""Baselines of AFNet: ASPP-c, ASPP-s and DeepMedic.

Qin et al.: "Autofocus Layer for Semantic Segmentation", MICCAI 2018, https://arxiv.org/abs/1805.08403, Sec. 3, Table 2.

ASPP-c and ASPP-s are the trunk of Basic with atrous spatial pyramid pooling as the classifier (Chen et al.: "DeepLab",
https://arxiv.org/abs/1606.00915, Fig. 4): 477,905 (``"cat"``) and 966,440 (``"sum"``) parameters for 4 channels and 5
classes. The widths, 30 and 120, are those of the authors' code; the paper gives none. For differences from that code
(yaq007/Autofocus-Layer) see :mod:`monai_attn.nets.afnet`.

DeepMedic is that of Kamnitsas et al.: "Efficient multi-scale 3D CNN with fully connected CRF for accurate brain lesion
segmentation", Medical Image Analysis 2017, https://arxiv.org/abs/1603.05959, Fig. 5, with the residual connections of
"DeepMedic for Brain Tumor Segmentation", BrainLes 2016: 662,215 parameters for 4 channels and 5 classes. Differs from
the authors' code (deepmedic/deepmedic) in: the output keeps the size of the input, whereas their paths crop, so that in
training the second path sees the crop and zeros around it, not the image beyond; ReLU by default instead of PReLU; and
no bias before a normalization, where it is inert. As in their code the second path sees every third voxel, here the
middle of each three.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv, Norm, Pool
from monai.networks.layers.utils import get_act_layer
from monai.utils import look_up_option
from torch import nn

from monai_attn.nets.afnet import DilatedNet, DilatedTrunk

__all__ = ["ASPP", "ASPPNet", "DeepMedic"]

_RELU = ("relu", {"inplace": True})


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (ASPP) that returns class scores.

    ``"cat"``: convolutions of 30 channels, concatenated; norm, activation, 1x1 convolution (ASPP-c).
    ``"sum"``: convolutions of 120 channels, each with norm, activation and 1x1 convolution; sum (ASPP-s).

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of classes.
        dilations: the dilations, one convolution each.
        fusion: ``"cat"`` or ``"sum"``.

    Raises:
        ValueError: if ``fusion`` is neither of the two, or a dilation is below 1.

    Example:
        >>> ASPP(3, 50, 5, fusion="sum")(torch.rand(1, 50, 9, 8, 7)).shape
        torch.Size([1, 5, 9, 8, 7])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        dilations: Sequence[int] = (2, 6, 10, 14),
        fusion: Literal["cat", "sum"] = "cat",
    ) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations must be positive, such as (2, 6, 10, 14), got {tuple(dilations)}.")
        self.sums = look_up_option(fusion, {"cat": False, "sum": True})
        self.radius = int(max(dilations))
        width, ending = (120, "NA") if self.sums else (30, "")
        conv = partial(Convolution, spatial_dims, in_channels, width, bias=False, adn_ordering=ending, norm="batch")
        classifier = partial(Conv[Conv.CONV, spatial_dims], out_channels=out_channels, kernel_size=1)
        self.branches = nn.ModuleList()
        for dilation in dilations:
            branch = conv(dilation=dilation, act=_RELU)
            self.branches.append(nn.Sequential(branch, classifier(width)) if self.sums else branch)
        self.joint: nn.Module = nn.Identity()
        if not self.sums:
            joined = len(dilations) * width
            norm = Norm[Norm.BATCH, spatial_dims](joined)
            self.joint = nn.Sequential(norm, get_act_layer(_RELU), classifier(joined))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to scores (B, out_channels, *spatial)."""
        scales = [branch(x) for branch in self.branches]
        joined = torch.stack(scales).sum(0) if self.sums else torch.cat(scales, dim=1)
        return self.joint(joined)


class ASPPNet(DilatedNet):
    """AFNet's trunk without autofocus layers, with ASPP as the classifier.

    Args:
        spatial_dims, in_channels, out_channels, channels, padding, init: see :class:`AFNet`, also for the attributes.
        fusion: ``"cat"`` for the paper's ASPP-c, ``"sum"`` for its ASPP-s.
        dilations: dilations of the pyramid.

    Raises:
        ValueError: if an argument is out of its range, or an input too small for ``padding="official"``.

    Example:
        >>> net = ASPPNet(3, 4, 5, fusion="sum", channels=(4, 4, 6, 6, 6, 6, 8, 8))
        >>> net(torch.rand(1, 4, 9, 10, 11)).shape, net.receptive_radius
        (torch.Size([1, 5, 9, 10, 11]), 28)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        fusion: Literal["cat", "sum"] = "cat",
        channels: Sequence[int] = (30, 30, 40, 40, 40, 40, 50, 50),
        dilations: Sequence[int] = (2, 6, 10, 14),
        padding: Literal["same", "official"] = "same",
        init: Literal["default", "paper"] = "default",
    ) -> None:
        trunk = DilatedTrunk(spatial_dims, in_channels, channels=channels, padding=padding)
        classifier = ASPP(spatial_dims, trunk.out_channels, out_channels, dilations=dilations, fusion=fusion)
        super().__init__(trunk, classifier, init, classifier.radius)


class _ZeroPaddedResidual(nn.Module):
    """``body(x) + x``, where channels that ``x`` lacks are zero."""

    def __init__(self, spatial_dims: int, body: nn.Module, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self._padding = [0] * 2 * spatial_dims + [0, out_channels - in_channels]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + F.pad(x, self._padding)


class DeepMedic(nn.Module):
    """DeepMedic: two paths, at full and low resolution.

    Args:
        spatial_dims, in_channels, out_channels, channels: see :class:`AFNet`; ``channels`` are those of each path.
        fc_channels: channels of the two 1x1 layers (the article's 150; later configurations have 250).
        scale: downsampling factor of the second path, which takes the middle of as many voxels.
        act: activation, as a name or ``(name, {args})``; ``"prelu"`` in the authors' code.
        dropout: probability to drop an input of the second 1x1 layer and of the classifier.

    Raises:
        ValueError: if ``channels`` or ``scale`` is out of its range.

    Example:
        >>> DeepMedic(3, 4, 5, channels=(4, 4, 6, 6))(torch.rand(1, 4, 7, 8, 10)).shape
        torch.Size([1, 5, 7, 8, 10])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int] = (30, 30, 40, 40, 40, 40, 50, 50),
        fc_channels: Sequence[int] = (150, 150),
        scale: int = 3,
        act: str | tuple = "relu",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(channels) < 4 or len(channels) % 2:
            raise ValueError(f"channels must be 2 and 2 more for each block, at least 4 in all, got {tuple(channels)}.")
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}.")
        conv = Conv[Conv.CONV, spatial_dims]

        def layer(inputs: int, outputs: int, *, size: int = 3, drop: float = 0.0, bias: bool = False) -> nn.Module:
            norm = Norm[Norm.BATCH, spatial_dims](inputs)
            last = conv(inputs, outputs, size, padding=size // 2, bias=bias)
            return nn.Sequential(norm, get_act_layer(act), nn.Dropout(drop), last)

        def path() -> nn.Sequential:
            first = conv(in_channels, channels[0], kernel_size=3, padding=1, bias=False)
            blocks = [
                _ZeroPaddedResidual(
                    spatial_dims, nn.Sequential(layer(inputs, middle), layer(middle, outputs)), inputs, outputs
                )
                for inputs, middle, outputs in zip(channels[1::2], channels[2::2], channels[3::2])
            ]
            return nn.Sequential(first, layer(channels[0], channels[1]), *blocks)

        self.scale = scale
        self._axes = list(range(2, 2 + spatial_dims))
        self.full = path()
        self.down = Pool[Pool.AVG, spatial_dims](1, stride=scale)
        self.low = path()
        *joined, last = pairwise([2 * channels[-1], *fc_channels, out_channels])
        drops = [0.0] + [dropout] * len(joined)
        self.classifier = nn.Sequential(
            *(layer(*widths, size=1, drop=drop) for widths, drop in zip(joined, drops)),
            layer(*last, size=1, drop=drops[-1], bias=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, *spatial) to logits (B, out_channels, *spatial)."""
        full = self.full(x)
        missing: list[int] = []  # voxels to whole windows, at the far end of each axis from the last
        for dim in self._axes[::-1]:
            missing += [0, -x.shape[dim] % self.scale]
        low, middle = F.pad(x, missing, mode="replicate"), (self.scale - 1) // 2
        for dim in self._axes:
            low = low.narrow(dim, middle, low.shape[dim] - middle)
        low = self.low(self.down(low))
        for dim in self._axes:
            low = low.repeat_interleave(self.scale, dim).narrow(dim, 0, x.shape[dim])
        return self.classifier(torch.cat([full, low], dim=1))
