# SPDX-License-Identifier: Apache-2.0
"""MONAI's networks that are nested level by level: U-Net and Attention U-Net."""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets import AttentionUnet, UNet

from monai_attn.adapt.streams.base import Features, Stream, total_stride

__all__ = ["AttentionUnetStream", "UNetStream"]


class UNetStream(Stream):
    """The features of ``UNet``.

    Every level begins with a stride, so that the finest feature is usually at half the image's size. The bottom layer
    keeps the size of the last down path, which therefore counts as the bottleneck. The topmost up path gives the
    logits and no decoder feature.

    Args:
        net: the network.
    """

    def __init__(self, net: UNet) -> None:
        downs, ups = [], []
        level: Any = net.model
        for _ in net.channels[1:]:
            downs.append(level[0])
            ups.append(level[2])
            level = level[1].submodule
        divisor = total_stride(net.strides[: len(downs)], net.dimensions)
        super().__init__(net, divisor=divisor, flat={"downs": [*downs, level], "ups": ups[::-1]})

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        encoder: list[torch.Tensor] = []
        decoder: list[torch.Tensor] = []
        for down in self.flat["downs"]:
            x = down(x)
            encoder.append(x)
        for i, up in enumerate(self.flat["ups"]):
            x = up(torch.cat([encoder[-2 - i], x], dim=1))
            decoder.append(x)
        return encoder[:-1], decoder[:-1], x


class AttentionUnetStream(Stream):
    """The features of ``AttentionUnet``. A level runs by its parts, and its ``merge`` gives the decoder feature.

    Args:
        net: the network.
    """

    def __init__(self, net: AttentionUnet) -> None:
        downs, levels = [net.model[0]], []
        level: Any = net.model[1]
        for _ in net.channels[2:]:
            levels.append(level)
            down, level = level.submodule
            downs.append(down)
        levels.append(level)
        downs.append(level.submodule)
        divisor = total_stride(net.strides[: len(levels)], net.dimensions)
        super().__init__(net, divisor=divisor, flat={"downs": downs, "levels": levels[::-1]})

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        encoder: list[torch.Tensor] = []
        decoder: list[torch.Tensor] = []
        for down in self.flat["downs"]:
            x = down(x)
            encoder.append(x)
        for i, level in enumerate(self.flat["levels"]):
            up = level.upconv(x)
            x = level.merge(torch.cat([level.attention(up, encoder[-2 - i]), up], dim=1))
            decoder.append(x)
        return encoder, decoder, self.net.model[2](x)
