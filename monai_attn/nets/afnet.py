# SPDX-License-Identifier: Apache-2.0
"""AFNet: the autofocus networks AFN-1 to AFN-6, and Basic.

Qin et al.: "Autofocus Layer for Semantic Segmentation", MICCAI 2018, https://arxiv.org/abs/1805.08403, Sec. 2.3, Fig. 2
and Tables 2 and 3; channels and residual connections are those of the main path of DeepMedic. Two plain layers, then
residual blocks of two layers of dilation 2, the last of which are autofocus layers::

    x ─► conv ─► conv ─┬─► layer ─► layer ─► + ─► … ─► 1x1 ─► logits
                       └───── shortcut ──────┘

====== ============ ===================== ========================
net    autofocus    receptive field       parameters (4 → 5)
====== ============ ===================== ========================
Basic  0            29                    315,315
AFN-1  1            53                    349,494
AFN-2  2            77                    371,498
AFN-3  3            101                   393,442
AFN-4  4            125                   415,386
AFN-5  5            149                   437,330
AFN-6  6            173                   449,799
====== ============ ===================== ========================

The parameters are counted without the 410 inert biases of the authors' code. The paper trains on crops of 75 voxels,
smaller than the receptive fields of AFN-2 to AFN-6.

Differs from the authors' code (yaq007/Autofocus-Layer) in: the output keeps the size of the input
(``padding="official"`` loses 14 voxels a side, as theirs); 1D and 2D besides 3D; any channels and number of blocks;
and no bias before a normalization, where it is inert.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.factories import Conv
from monai.utils import look_up_option
from torch import nn

from monai_attn.blocks.autofocus import AutofocusConv, crop_border

__all__ = ["AFNet", "DilatedNet", "DilatedResidual", "DilatedTrunk"]

_DILATION = 2


class DilatedResidual(nn.Module):
    """Residual block that activates last: ``relu(second(relu(first(x))) + shortcut(x))``.

    Args:
        first, second: layers with normalization and without activation.
        shortcut: the identity, or a 1x1 convolution with normalization where the channels change.
        crop: voxels that both layers together remove at every side.
    """

    def __init__(self, first: nn.Module, second: nn.Module, shortcut: nn.Module, crop: int) -> None:
        super().__init__()
        self.first, self.second, self.shortcut, self.crop = first, second, shortcut, crop

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to (B, out_channels, *(spatial - 2 crop))."""
        hidden = F.relu(self.first(x), inplace=True)
        return F.relu(self.second(hidden) + self.shortcut(crop_border(x, self.crop)), inplace=True)


class DilatedTrunk(nn.Module):
    """Trunk of AFNet and the ASPP baselines, at full resolution.

    Arguments and attributes are those of :class:`AFNet`; ``options`` are those of its autofocus layers,
    :class:`monai_attn.blocks.AutofocusConv`.

    Raises:
        ValueError: if an argument is out of its range, or an input too small for ``padding="official"``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        channels: Sequence[int],
        n_autofocus: int = 0,
        norm: str | tuple | None = "batch",
        padding: Literal["same", "official"] = "same",
        **options: Any,
    ) -> None:
        super().__init__()
        dilated = len(channels) - 2
        if dilated < 2 or dilated % 2:
            raise ValueError(f"channels must be 2 and 2 more for each block, at least 4 in all, got {tuple(channels)}.")
        if not 0 <= n_autofocus <= dilated:
            raise ValueError(f"n_autofocus must be from 0 to {dilated}, the dilated layers, got {n_autofocus}.")
        lost = look_up_option(padding, {"same": 0, "official": _DILATION})  # by a dilated layer, at every side
        conv = partial(Convolution, spatial_dims, padding=0 if lost else None, bias=False, norm=norm)
        plain = partial(conv, adn_ordering="NA", act=("relu", {"inplace": True}))

        def layer(index: int) -> nn.Module:
            inputs, outputs = channels[index - 1], channels[index]
            if index < len(channels) - n_autofocus:
                return conv(inputs, outputs, dilation=_DILATION, adn_ordering="N")
            return AutofocusConv(spatial_dims, inputs, outputs, norm=norm, crop=lost, **options)

        self.stem = nn.Sequential(plain(in_channels, channels[0]), plain(channels[0], channels[1]))
        self.blocks = nn.ModuleList()
        self.receptive_radius = len(self.stem) + _DILATION * (dilated - n_autofocus)
        for index in range(2, len(channels), 2):
            inputs, outputs = channels[index - 1], channels[index + 1]
            shortcut = conv(inputs, outputs, kernel_size=1, adn_ordering="N") if inputs != outputs else nn.Identity()
            layers = layer(index), layer(index + 1)
            self.blocks.append(DilatedResidual(*layers, shortcut, crop=2 * lost))
            self.receptive_radius += sum(found.radius for found in layers if isinstance(found, AutofocusConv))
        self.out_channels = int(channels[-1])
        self.crop = len(self.stem) + lost * dilated if lost else 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to (B, channels[-1], *(spatial - 2 crop))."""
        if self.crop > 0 and min(x.shape[2:]) <= 2 * self.crop:
            raise ValueError(f"padding='official' needs at least {2 * self.crop + 1} voxels a side, got {x.shape[2:]}.")
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


class DilatedNet(nn.Module):
    """Dilated trunk with a classifier, which sees ``radius`` voxels around its own.

    Attributes and ``init`` are those of :class:`AFNet`.

    Raises:
        ValueError: if ``init`` is unknown.
    """

    def __init__(
        self, trunk: DilatedTrunk, classifier: nn.Module, init: Literal["default", "paper"], radius: int = 0
    ) -> None:
        super().__init__()
        self.trunk, self.classifier = trunk, classifier
        self.receptive_radius, self.crop = trunk.receptive_radius + radius, trunk.crop
        if look_up_option(init, ("default", "paper")) == "paper":
            for module in self.modules():
                if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                    nn.init.normal_(module.weight, std=0.01)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, *spatial) to logits (B, out_channels, *(spatial - 2 crop))."""
        return self.classifier(self.trunk(x))


class AFNet(DilatedNet):
    """Autofocus network (AFNet) at full resolution.

    Infer with windows of the size of the training crops, such as with MONAI's ``SlidingWindowInferer``: in training,
    large dilations only see zero padding beyond the crop.

    With ``padding="official"`` the output is smaller than the input. ``SlidingWindowInferer`` takes it for another
    resolution and rescales without an error: use :class:`monai_attn.inferers.HaloInferer`.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3 (the paper).
        in_channels: number of input channels.
        out_channels: number of classes, with the background.
        n_autofocus: the n of AFN-n, 0 (Basic) to 6: how many dilated layers are autofocus layers, from the last.
        channels: channels of the layers: two plain layers, then two for each residual block.
        dilations: dilations of the autofocus layers.
        norm: normalization, as a name or ``(name, {args})``; ``None`` for none.
        padding: ``"same"``, or ``"official"``: 14 voxels fewer at every side, as in the authors' code.
        detach_attention: whether attention sends no gradient to the features, as in the authors' code.
        share_weights: whether the scales of an autofocus layer share one kernel, as in the paper.
        init: ``"default"``, PyTorch's, or ``"paper"``, N(0, 0.01) as in the authors' code, which starts attention
            almost uniform.
        memory_efficient: whether to recompute the autofocus layers in the backward pass.

    Attributes:
        receptive_radius: how far an output voxel sees in the input, in voxels.
        crop: voxels that the output loses at every side, 0 or 14.

    Raises:
        ValueError: if an argument is out of its range, or an input too small for ``padding="official"``.

    Example:
        >>> net = AFNet(3, 4, 5, n_autofocus=2, channels=(4, 4, 6, 6, 6, 6, 8, 8))
        >>> net(torch.rand(1, 4, 9, 10, 11)).shape, net.receptive_radius
        (torch.Size([1, 5, 9, 10, 11]), 38)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        n_autofocus: int = 6,
        channels: Sequence[int] = (30, 30, 40, 40, 40, 40, 50, 50),
        dilations: Sequence[int] = (2, 6, 10, 14),
        norm: str | tuple | None = "batch",
        padding: Literal["same", "official"] = "same",
        detach_attention: bool = True,
        share_weights: bool = True,
        init: Literal["default", "paper"] = "default",
        memory_efficient: bool = False,
    ) -> None:
        trunk = DilatedTrunk(
            spatial_dims,
            in_channels,
            channels=channels,
            n_autofocus=n_autofocus,
            norm=norm,
            padding=padding,
            dilations=dilations,
            detach_attention=detach_attention,
            share_weights=share_weights,
            memory_efficient=memory_efficient,
        )
        super().__init__(trunk, Conv[Conv.CONV, spatial_dims](trunk.out_channels, out_channels, kernel_size=1), init)
