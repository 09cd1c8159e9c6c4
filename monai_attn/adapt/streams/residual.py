# SPDX-License-Identifier: Apache-2.0
"""MONAI's residual networks after Myronenko: SegResNet and SegResNetDS."""

from __future__ import annotations

import torch
from monai.networks.nets import SegResNet, SegResNetDS

from monai_attn.adapt.streams.base import Features, Stream

__all__ = ["SegResNetDSStream", "SegResNetStream"]


class SegResNetStream(Stream):
    """The features of ``SegResNet``.

    Args:
        net: the network.
    """

    def __init__(self, net: SegResNet) -> None:
        super().__init__(net, divisor=2 ** (len(net.blocks_down) - 1))

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        x, encoder = self.net.encode(x)
        decoder: list[torch.Tensor] = []
        for i, (up, layer) in enumerate(zip(self.net.up_samples, self.net.up_layers)):
            x = layer(up(x) + encoder[-2 - i])
            decoder.append(x)
        return encoder, decoder, self.net.conv_final(x) if self.net.use_conv_final else x


class SegResNetDSStream(Stream):
    """The features of ``SegResNetDS``. Heads of deep supervision but the finest are not run.

    Args:
        net: the network.
    """

    def __init__(self, net: SegResNetDS) -> None:
        super().__init__(net, divisor=[int(factor) for factor in net.shape_factor()])

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        if self.net.preprocess is not None:
            x = self.net.preprocess(x)
        encoder = self.net.encoder(x)
        decoder: list[torch.Tensor] = []
        x = encoder[-1]
        for i, level in enumerate(self.net.up_layers):
            x = level["blocks"](level["upsample"](x) + encoder[-2 - i])
            decoder.append(x)
        return encoder, decoder, self.net.up_layers[-1]["head"](x)
