# SPDX-License-Identifier: Apache-2.0
"""Encoder-decoder with squeeze & excitation (scSE) at P1 to P6.

Roy et al. (scSE), IEEE TMI 2019, https://arxiv.org/abs/1808.08127, Fig. 2, Sec. II-D and III-B, Table IV::

    x ─► encoder ─► SE ─┬────────────────── skip ──────────────────┬─► decoder ─► SE ─► classifier ─► SE ─► logits
              P1        └─► pool ─► … ─► bottleneck ─► SE ─► … ─► up    P2                      P4
                                                P3
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from monai.networks.layers.factories import Conv, Dropout
from monai.utils import look_up_option
from torch import nn

from monai_attn.blocks.squeeze_excite import SE_POSITIONS, Aggregation, Position, complete_se, get_se_layer
from monai_attn.blocks.stages import MaxPoolWithIndices

__all__ = ["SqueezeExciteFCN"]


class SqueezeExciteFCN(nn.Module):
    """Encoder-decoder with squeeze & excitation at positions P1 to P6.

    All stages are equally wide, and any input size works. SE follows a complete stage, before dropout and pooling.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 (the paper) or 3.
        in_channels: number of input channels.
        out_channels: number of classes.
        stage: builds one encoder or decoder stage from its numbers of input and output channels.
        bottleneck: builds the bottleneck in the same way; by default the same stage.
        up: the upsampling, called with features, the indices of the pooling and the size to reach.
        depth: number of encoder stages and of decoder stages.
        features: number of channels of every stage.
        se: ``"scse"``, ``"cse"`` or ``"sse"``, or ``(name, {args})``; ``None`` for the plain network. The excitations
            of ``("scse", {"bias": False})`` have no biases, as in the paper's formulas and unlike the authors' code.
        positions: ``"P1"`` encoders, ``"P2"`` decoders, ``"P3"`` bottleneck, ``"P4"`` after the classifier, ``"P5"``
            encoders and decoders, ``"P6"`` everywhere (Table IV).
        reduction, aggregation: see :class:`monai_attn.blocks.ChannelSpatialSE`.
        skip: ``"recalibrated"`` passes SE(U) over the skip connection (configuration 1), ``"raw"`` passes U
            (configuration 2).
        dropout: probability to drop a channel after every encoder and decoder stage (authors' code: 0.2).

    Raises:
        ValueError: if an option is unknown, ``depth`` is below 1, or ``aggregation="concat"`` is used at P4 or P6,
            where it would double the classes.

    Example:
        >>> from monai_attn.nets import SCSEUNet
        >>> network = SCSEUNet(2, 1, 4, features=8, depth=2)
        >>> isinstance(network, SqueezeExciteFCN), network(torch.rand(1, 1, 9, 11)).shape
        (True, torch.Size([1, 4, 9, 11]))
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        stage: Callable[[int, int], nn.Module],
        bottleneck: Callable[[int, int], nn.Module] | None = None,
        up: nn.Module,
        depth: int,
        features: int,
        se: str | tuple | None,
        positions: Position,
        reduction: int,
        aggregation: Aggregation,
        skip: Literal["recalibrated", "raw"],
        dropout: float,
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth is the number of encoder stages and must be at least 1, got {depth}.")
        layer = complete_se(se, reduction=reduction, aggregation=aggregation)
        recalibrated = look_up_option(positions, SE_POSITIONS)
        doubles = layer is not None and layer[1].get("aggregation") == "concat"
        if doubles and "classifier" in recalibrated:
            fix = "use positions P1, P2, P3 or P5, or another aggregation"
            raise ValueError(f"aggregation='concat' with {positions=} would double the {out_channels} classes; {fix}.")

        def recalibrate(part: str, channels: int = features) -> nn.Module:
            return get_se_layer(layer if part in recalibrated else None, spatial_dims, channels)

        def width(part: str) -> int:
            return 2 * features if doubles and part in recalibrated else features

        self.recalibrated_skip = look_up_option(skip, {"recalibrated": True, "raw": False})
        self.indices_before_se = doubles and "encoders" in recalibrated
        skip_width = width("encoders") if self.recalibrated_skip else features
        encoder_inputs = [in_channels] + [width("encoders")] * (depth - 1)
        decoder_inputs = [skip_width + width(below) for below in ["bottleneck"] + ["decoders"] * (depth - 1)]

        self.encoders = nn.ModuleList(stage(channels, features) for channels in encoder_inputs)
        self.encoder_se = nn.ModuleList(recalibrate("encoders") for _ in range(depth))
        self.pool = MaxPoolWithIndices(spatial_dims)
        self.bottleneck = (bottleneck or stage)(width("encoders"), features)
        self.bottleneck_se = recalibrate("bottleneck")
        self.up = up
        self.decoders = nn.ModuleList(stage(channels, features) for channels in decoder_inputs)
        self.decoder_se = nn.ModuleList(recalibrate("decoders") for _ in range(depth))
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout)
        self.classifier = Conv[Conv.CONV, spatial_dims](width("decoders"), out_channels, kernel_size=1)
        self.classifier_se = recalibrate("classifier", out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, *spatial) to logits (B, out_channels, *spatial)."""
        skips: list[torch.Tensor] = []
        places: list[torch.Tensor] = []
        for stage, se in zip(self.encoders, self.encoder_se):
            u = stage(x)
            recalibrated = self.dropout(se(u))
            x, indices = self.pool(recalibrated)
            # concatenation doubles the channels, and the decoder unpools maps of the undoubled width
            places.append(self.pool(u)[1] if self.indices_before_se else indices)
            skips.append(recalibrated if self.recalibrated_skip else u)
        x = self.bottleneck_se(self.bottleneck(x))
        for stage, se in zip(self.decoders, self.decoder_se):
            skip = skips.pop()
            x = torch.cat([skip, self.up(x, skip.shape[2:], places.pop())], dim=1)
            x = self.dropout(se(stage(x)))
        return self.classifier_se(self.classifier(x))
