# SPDX-License-Identifier: Apache-2.0
"""Atrous spatial pyramid pooling, the baseline of the autofocus layer.

Qin et al.: "Autofocus Layer for Semantic Segmentation", MICCAI 2018, https://arxiv.org/abs/1805.08403, Sec. 3 (ASPP-c
and ASPP-s), after Chen et al.: "DeepLab", https://arxiv.org/abs/1606.00915, Fig. 4. Unlike the autofocus layer each
dilation has its own kernel, and all voxels weigh the scales alike.

The widths, 30 and 120, are those of the authors' code; the paper gives none. Differs from that code
(yaq007/Autofocus-Layer) in: 1D and 2D besides 3D, and no bias where a normalisation follows, which makes it inert.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.utils import look_up_option
from torch import nn

__all__ = ["ASPP"]


class ASPP(nn.Module):
    """Parallel dilated convolutions that end in class scores, joined by concatenation or by a sum.

    ``"cat"``: the convolutions' outputs are concatenated - norm - activation - 1x1 convolution (ASPP-c).
    ``"sum"``: every convolution - norm - activation - 1x1 convolution; the scores are summed (ASPP-s).

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        in_channels: number of input channels.
        out_channels: number of classes.
        dilations: the dilations, one convolution each.
        fusion: ``"cat"`` or ``"sum"``.
        features: channels of each convolution; by default 30 for ``"cat"`` and 120 for ``"sum"``.
        act: activation, as a name or ``(name, {args})``.
        norm: normalisation, as a name or ``(name, {args})``; ``None`` for none.

    Attributes:
        radius: how far the output sees, in voxels: the largest dilation.

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
        fusion: str = "cat",
        features: int | None = None,
        act: str | tuple = ("relu", {"inplace": True}),
        norm: str | tuple | None = "batch",
    ) -> None:
        super().__init__()
        if not dilations or min(dilations) < 1:
            raise ValueError(f"dilations must be positive, such as (2, 6, 10, 14), got {tuple(dilations)}.")
        self.sums = look_up_option(fusion, {"cat": False, "sum": True})
        self.radius = int(max(dilations))
        width = features or (120 if self.sums else 30)
        classifier = partial(Conv[Conv.CONV, spatial_dims], out_channels=out_channels, kernel_size=1)
        self.branches = nn.ModuleList()
        for dilation in dilations:
            branch = Convolution(
                spatial_dims,
                in_channels,
                width,
                dilation=dilation,
                bias=False,
                adn_ordering="NA" if self.sums else "",
                act=act,
                norm=norm,
            )
            self.branches.append(nn.Sequential(branch, classifier(width)) if self.sums else branch)
        self.joint: nn.Module = nn.Identity()
        if not self.sums:
            channels = len(dilations) * width
            joint_norm = get_norm_layer(norm or "", spatial_dims, channels)
            self.joint = nn.Sequential(joint_norm, get_act_layer(act), classifier(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to scores (B, out_channels, *spatial)."""
        scales: list[torch.Tensor] = []
        for branch in self.branches:
            scales.append(branch(x))
        joined = torch.stack(scales).sum(0) if self.sums else torch.cat(scales, dim=1)
        return self.joint(joined)
