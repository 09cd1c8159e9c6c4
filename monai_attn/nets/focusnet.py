# SPDX-License-Identifier: Apache-2.0
"""FocusNet: attention-based encoder-decoder.

Kaul, Manandhar, Pears: "FocusNet: An Attention-Based Fully Convolutional Network for Medical Image Segmentation", ISBI
2019, https://arxiv.org/abs/1902.03091, Fig. 1, eqs. 1 to 3. An attention branch, an encoder-decoder, gates the encoder
of the segmentation branch, which is built of residual and squeeze & excitation blocks::

    image -+- attention branch -- G1 (H) --- G2 (H/2) -- G3 (H/4)
           |                      | sigmoid  | sigmoid   | sigmoid
           +- 7x7 stem ---------- level 1 -- level 2 --- level 3 -- level 4 -- decoder -- 1x1

The authors' code (focusnet-alpha, TheFocusNetSeries) settles what the paper leaves open. Where they disagree, the code
is the default: in the paper all residual blocks are pre-activated (``preact="full"``; in the code 7 of 23) and dropout
is "throughout" (``dropout_everywhere=True``; in the code once). Unlike the authors' code, it takes any number of
dimensions and any input size, returns logits, pads symmetrically by default, and starts as PyTorch's layers do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from monai.networks.layers.factories import Conv, Pad
from monai.networks.layers.utils import get_norm_layer
from monai.utils import look_up_option
from torch import nn

from monai_attn.blocks.gate import Gate
from monai_attn.blocks.residual import PreActResidual
from monai_attn.blocks.squeeze_excite import ChannelSE
from monai_attn.blocks.stages import UpsampleTo

__all__ = ["FocusNet"]

_KERAS_BATCH_NORM = ("batch", {"eps": 1e-3, "momentum": 0.01})


class _Layers(NamedTuple):
    """Constructors of layers; all but the last take input and output channels."""

    residual: Callable[[int, int], nn.Module]
    down: Callable[[int, int], nn.Module]
    up: Callable[[int, int], nn.Module]
    se: Callable[[int], nn.Module]


class _UpConv(nn.Module):
    """Interpolation to a given size, 2x2 convolution padded at the far end, ReLU."""

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = UpsampleTo(spatial_dims)
        self.pad = Pad[Pad.CONSTANTPAD, spatial_dims]((0, 1) * spatial_dims, 0.0)
        self.conv = Conv[Conv.CONV, spatial_dims](in_channels, out_channels, 2)

    def forward(self, x: torch.Tensor, size: list[int]) -> torch.Tensor:
        return torch.relu(self.conv(self.pad(self.up(x, size))))


class _Decoder(nn.Module):
    """Decoder step of either branch, with a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, skip_channels: int, layers: _Layers) -> None:
        super().__init__()
        self.up = layers.up(in_channels, out_channels)
        self.residual = layers.residual(skip_channels + out_channels, out_channels)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.residual(torch.cat([skip, self.up(x, skip.shape[2:])], dim=1))


class _AttentionBranch(nn.Module):
    """Encoder-decoder whose decoder features are the logits of the gates."""

    def __init__(self, stem: nn.Module, channels: Sequence[int], layers: _Layers, dropout: float) -> None:
        super().__init__()
        steps = list(pairwise(channels))
        self.stem = stem
        self.encoders = nn.ModuleList(
            nn.Sequential(layers.down(narrow, narrow), layers.residual(narrow, wide)) for narrow, wide in steps
        )
        self.dropout = nn.Dropout(dropout)
        inputs = [*channels[2:], channels[-1]]
        self.decoders = nn.ModuleList(
            _Decoder(below, wide, narrow, layers) for below, (narrow, wide) in reversed(list(zip(inputs, steps)))
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor | None]:
        """Map an image to the logits of the gates, the finest first; gate i has the channels and size of level i."""
        skips = [self.stem(x)]
        for encoder in self.encoders:
            skips.append(encoder(skips[-1]))
        x = self.dropout(skips.pop())
        gates: list[torch.Tensor | None] = [None]  # for the level below, which has no gate
        for decoder in self.decoders:
            x = decoder(x, skips.pop())
            gates.insert(0, x)
        return gates


class _NoAttention(nn.Module):
    """Stand-in for the attention branch that gates nothing."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: torch.Tensor) -> list[torch.Tensor | None]:
        gates: list[torch.Tensor | None] = [None]
        return gates * self.levels


class _Level(nn.Module):
    """Level of the segmentation encoder: residual, SE, gate, SE, strided residual (eq. 3)."""

    def __init__(self, in_channels: int, out_channels: int, layers: _Layers, *, gated: bool, gate_bias: float) -> None:
        super().__init__()
        self.gate_bias = gate_bias
        self.residual = layers.residual(in_channels, out_channels)
        self.se1 = layers.se(out_channels)
        self.gate = Gate() if gated else nn.Identity()
        self.se2 = layers.se(out_channels) if gated else nn.Identity()
        self.down = layers.down(out_channels, out_channels)

    def forward(self, x: torch.Tensor, logits: torch.Tensor | None) -> torch.Tensor:
        x = self.se1(self.residual(x))
        if logits is not None:
            x = x * self.gate(logits + self.gate_bias)
        return self.down(self.se2(x))


class _Fusion(nn.Module):
    """Output of the later code: the main head and a head for each coarser decoder level, fused by two convolutions."""

    def __init__(self, spatial_dims: int, widths: Sequence[int], out_channels: int, hidden: int = 32) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]

        def head(width: int) -> nn.Module:
            return nn.Sequential(conv(width, hidden, 3, padding=1), nn.ReLU(), conv(hidden, out_channels, 1))

        self.up = UpsampleTo(spatial_dims)
        self.heads = nn.ModuleList(head(width) for width in widths)
        self.fuse = head((len(widths) + 1) * out_channels)

    def forward(self, decoded: list[torch.Tensor], logits: torch.Tensor) -> torch.Tensor:
        outputs: list[torch.Tensor] = []
        for index, head in enumerate(self.heads):
            outputs.append(torch.sigmoid(head(self.up(decoded[index], logits.shape[2:]))))
        outputs.append(torch.sigmoid(logits))
        return self.fuse(torch.cat(outputs, dim=1))


class FocusNet(nn.Module):
    """FocusNet; the default layers are those of the authors' code.

    It has 18,933,497 parameters for 3 to 1 channels in 2D.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 (the paper) or 3.
        in_channels: number of input channels.
        out_channels: number of output channels.
        channels: widths at the full resolution and at each halving of it. The attention branch uses all but the last.
            Half and an eighth of the first are the widths of the last two blocks.
        variant: ``"isbi2019"``, or ``"series"`` for the later code whose output is fused from the main head and one
            head for each coarser decoder level (19,063,933 parameters).
        padding: ``"symmetric"`` or ``"tf"``, see :class:`monai_attn.blocks.PreActResidual`; weights trained with the
            authors' Keras code need ``"tf"``.
        preact: ``"first"`` if only the blocks of stride 2 begin with norm and activation (authors' code), ``"full"``
            if all do (paper).
        dropout: dropout probability at the bottleneck of the attention branch.
        dropout_everywhere: whether every residual block has dropout too.
        se_reduction: the squeeze & excitation blocks have C // se_reduction hidden channels.
        gated: whether there is an attention branch.
        gate_bias: constant added to the logits of the gates, our addition: with 3 they start near 0.95 instead of 0.5.
            It is not in the state dict, so weights need a network with the same value.
        norm: normalization, as a name or ``(name, {args})``.

    Raises:
        ValueError: if an option is unknown, or ``channels`` has fewer than 3 entries or begins below 8.

    Example:
        >>> network = FocusNet(2, 3, 1, channels=(8, 8, 16), se_reduction=4)
        >>> network(torch.rand(1, 3, 40, 61)).shape
        torch.Size([1, 1, 40, 61])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        variant: Literal["isbi2019", "series"] = "isbi2019",
        padding: Literal["symmetric", "tf"] = "symmetric",
        preact: Literal["first", "full"] = "first",
        dropout: float = 0.2,
        dropout_everywhere: bool = False,
        se_reduction: int = 16,
        gated: bool = True,
        gate_bias: float = 0.0,
        norm: str | tuple = _KERAS_BATCH_NORM,
    ) -> None:
        super().__init__()
        if len(channels) < 3 or channels[0] < 8:
            raise ValueError(f"channels must be at least 3 widths, the first at least 8, got {tuple(channels)}.")
        if min(channels[1:]) < se_reduction:
            raise ValueError(f"se_reduction must be at most the smallest of {tuple(channels[1:])}, got {se_reduction}.")
        self.pads_like_tensorflow = padding == "tf"
        fused = look_up_option(variant, {"isbi2019": False, "series": True})
        block = partial(
            PreActResidual, spatial_dims, padding=padding, norm=norm, dropout=dropout if dropout_everywhere else 0.0
        )
        layers = _Layers(
            residual=partial(block, preact=look_up_option(preact, {"first": False, "full": True})),
            down=partial(block, stride=2),
            up=partial(_UpConv, spatial_dims),
            se=partial(ChannelSE, spatial_dims, reduction=se_reduction, bias=False),
        )
        conv, widths = Conv[Conv.CONV, spatial_dims], list(channels[1:])

        def stem(width: int, size: int, act: nn.Module, bias: bool) -> nn.Module:
            first = conv(in_channels, width, size, padding=size // 2, bias=bias)
            return nn.Sequential(first, get_norm_layer(norm, spatial_dims, width), act)

        self.attention: nn.Module = _NoAttention(len(widths))
        if gated:
            image = stem(channels[0], 3, nn.LeakyReLU(0.3), bias=False)
            self.attention = _AttentionBranch(image, channels[:-1], layers, dropout)
        self.stem = stem(widths[0], 7, nn.ReLU(), bias=True)
        self.levels = nn.ModuleList(
            _Level(before, width, layers, gated=index < len(widths) - 1, gate_bias=gate_bias)
            for index, (before, width) in enumerate(pairwise([widths[0], *widths]))
        )
        self.decoders = nn.ModuleList(
            _Decoder(below, width, width, layers) for width, below in reversed(list(pairwise(widths)))
        )
        self.last_decoder = _Decoder(widths[0], channels[0], widths[0], layers)
        thin = (channels[0], channels[0] // 2, channels[0] // 8)
        self.thinning = nn.Sequential(*(layers.residual(*pair) for pair in pairwise(thin)))
        self.head = conv(thin[-1], out_channels, 1)
        self.fusion = _Fusion(spatial_dims, widths[-2::-1], out_channels) if fused else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, *spatial) to logits (B, out_channels, *spatial)."""
        gates = self.attention(x)
        features = [self.stem(x)]
        for index, level in enumerate(self.levels):
            features.append(level(features[-1], gates[index]))

        x = features.pop()
        decoded: list[torch.Tensor] = []
        for decoder in self.decoders:
            x = decoder(x, features.pop())
            decoded.append(x)
        logits = self.head(self.thinning(self.last_decoder(x, features.pop())))
        return logits if self.fusion is None else self.fusion(decoded, logits)
