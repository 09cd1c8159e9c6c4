# SPDX-License-Identifier: Apache-2.0
"""The trunk that AFNet and the ASPP baselines share: eight 3x3 layers at full resolution, most of them dilated.

Qin et al.: "Autofocus Layer for Semantic Segmentation", MICCAI 2018, https://arxiv.org/abs/1805.08403, Sec. 3 and
Fig. 3; the channels and the residual connections are those of the main path of DeepMedic.

Two plain layers, then residual blocks of two layers of dilation 2; an autofocus layer may take the place of each of
the latter::

    x ─► conv ─► conv ─┬─► layer ─► layer ─► + ─► … ─► features
                       └───── shortcut ──────┘

Differs from the authors' code (yaq007/Autofocus-Layer) in: the output keeps the size of the input
(``padding="official"`` loses 14 voxels a side, as theirs); 2D (and 1D) besides 3D; any channels and number of blocks;
and no bias where a normalisation follows, which makes it inert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.utils import look_up_option
from torch import nn
from torch.nn.modules.conv import _ConvNd

from monai_attn.blocks.autofocus import AutofocusConv, crop_border
from monai_attn.inferers.steps import LayerStep

__all__ = ["DilatedResidual", "DilatedTrunk", "initialise"]

_DILATION = 2


class DilatedResidual(nn.Module):
    """Two layers and a shortcut, activation last: ``relu(second(relu(first(x))) + shortcut(x))``.

    Args:
        first: the first layer, with its normalisation and without activation.
        second: the second layer, likewise.
        shortcut: the identity, or a 1x1 convolution with normalisation where the channels change.
        crop: voxels that both layers together take off every side.
    """

    def __init__(self, first: nn.Module, second: nn.Module, shortcut: nn.Module, crop: int) -> None:
        super().__init__()
        self.first, self.second, self.shortcut, self.crop = first, second, shortcut, crop

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """The activated output of the first layer."""
        return F.relu(self.first(x), inplace=True)

    def leave(self, hidden: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The output, from that of ``enter`` and its input."""
        return F.relu(self.second(hidden) + self.shortcut(crop_border(x, self.crop)), inplace=True)

    def layerwise(self) -> list[LayerStep]:
        """Both layers, for :class:`monai_attn.inferers.LayerwiseInferer`."""
        return [LayerStep(self.enter, _radius(self.first)), LayerStep(self.leave, _radius(self.second), skip=1)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to (B, out_channels, *(spatial - 2 crop))."""
        return self.leave(self.enter(x), x)


class DilatedTrunk(nn.Module):
    """The features of AFNet and of the ASPP baselines, at full resolution.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3 (the paper).
        in_channels: number of input channels.
        channels: channels of each layer: two plain layers, then two for each residual block.
        n_autofocus: how many of the dilated layers are autofocus layers, counted from the last.
        dilations: dilations of the autofocus layers; the plain dilated layers have 2.
        norm: normalisation, as a name or ``(name, {args})``; ``None`` for none.
        padding: ``"same"``, or ``"official"``, which loses one voxel a side per plain layer and two per dilated one.
        detach_attention, share_weights, memory_efficient: see :class:`monai_attn.blocks.AutofocusConv`.

    Attributes:
        receptive_radius: how far an output voxel sees in the input, in voxels.
        crop: voxels that the output loses at every side.

    Raises:
        ValueError: if an argument is out of its range, or an input too small for ``padding="official"``.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        channels: Sequence[int] = (30, 30, 40, 40, 40, 40, 50, 50),
        n_autofocus: int = 0,
        dilations: Sequence[int] = (2, 6, 10, 14),
        norm: str | tuple | None = "batch",
        padding: str = "same",
        detach_attention: bool = True,
        share_weights: bool = True,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        dilated = len(channels) - 2
        if dilated < 2 or dilated % 2:
            raise ValueError(f"channels must be 2 and 2 more for each block, at least 4 in all, got {tuple(channels)}.")
        if not 0 <= n_autofocus <= dilated:
            raise ValueError(f"n_autofocus must be from 0 to {dilated}, the dilated layers, got {n_autofocus}.")
        valid = look_up_option(padding, {"same": False, "official": True})

        def plain(inputs: int, outputs: int, *, kernel_size: int = 3, dilation: int = 1, end: str = "N") -> nn.Module:
            return Convolution(
                spatial_dims,
                inputs,
                outputs,
                kernel_size=kernel_size,
                dilation=dilation,
                padding=0 if valid else None,
                bias=False,
                adn_ordering=end,
                act=("relu", {"inplace": True}),
                norm=norm,
            )

        def layer(index: int) -> nn.Module:
            inputs, outputs = channels[index - 1], channels[index]
            if index < len(channels) - n_autofocus:
                return plain(inputs, outputs, dilation=_DILATION)
            return AutofocusConv(
                spatial_dims,
                inputs,
                outputs,
                dilations=dilations,
                norm=norm,
                crop=_DILATION if valid else 0,
                detach_attention=detach_attention,
                share_weights=share_weights,
                memory_efficient=memory_efficient,
            )

        self.stem = nn.Sequential(plain(in_channels, channels[0], end="NA"), plain(channels[0], channels[1], end="NA"))
        blocks = []
        for index in range(2, len(channels), 2):
            inputs, outputs = channels[index - 1], channels[index + 1]
            shortcut = nn.Identity() if inputs == outputs else plain(inputs, outputs, kernel_size=1)
            crop = 2 * _DILATION if valid else 0
            blocks.append(DilatedResidual(layer(index), layer(index + 1), shortcut, crop))
        self.blocks = nn.ModuleList(blocks)
        self.out_channels = int(channels[-1])
        self.receptive_radius = sum(step.radius for step in self.layerwise())
        self.crop = len(self.stem) + _DILATION * dilated if valid else 0

    def layerwise(self) -> list[LayerStep]:
        """The layers one by one, for :class:`monai_attn.inferers.LayerwiseInferer`."""
        steps = [LayerStep(layer, radius=1) for layer in self.stem]
        blocks = [block for block in self.blocks if isinstance(block, DilatedResidual)]
        return steps + [step for block in blocks for step in block.layerwise()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to (B, channels[-1], *(spatial - 2 crop))."""
        if self.crop > 0 and min(x.shape[2:]) <= 2 * self.crop:
            raise ValueError(
                f"padding='official' loses {self.crop} voxels a side and needs at least {2 * self.crop + 1}, got "
                f"{x.shape[2:]}; use a larger input or padding='same'."
            )
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


def _radius(layer: nn.Module) -> int:
    return layer.radius if isinstance(layer, AutofocusConv) else _DILATION


def _paper(module: nn.Module) -> None:
    if isinstance(module, _ConvNd):
        nn.init.normal_(module.weight, std=0.01)


def _default(module: nn.Module) -> None:
    """Leave PyTorch's values."""


def initialise(network: nn.Module, init: str) -> None:
    """Draw the weights of all convolutions anew.

    Args:
        network: the network.
        init: ``"paper"`` for N(0, 0.01), as in the authors' code, ``"default"`` for PyTorch's.

    Raises:
        ValueError: if ``init`` is neither of the two.
    """
    ways: dict[str, Callable[[nn.Module], None]] = {"default": _default, "paper": _paper}
    network.apply(look_up_option(init, ways))
