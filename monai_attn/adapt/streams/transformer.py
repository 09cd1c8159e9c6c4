# SPDX-License-Identifier: Apache-2.0
"""MONAI's transformers with a convolutional decoder: UNETR and Swin UNETR."""

from __future__ import annotations

import torch
from monai.networks.nets import UNETR, SwinUNETR

from monai_attn.adapt.streams.base import Features, Stream

__all__ = ["SwinUNETRStream", "UNETRStream"]


class UNETRStream(Stream):
    """The features of ``UNETR``, which takes images of one size only.

    Args:
        net: the network.
    """

    def __init__(self, net: UNETR) -> None:
        size = [patches * side for patches, side in zip(net.feat_size, net.patch_size)]
        super().__init__(net, divisor=size, size=size)

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        tokens, hidden = self.net.vit(x)
        e1 = self.net.encoder1(x)
        e2 = self.net.encoder2(self.net.proj_feat(hidden[3]))
        e3 = self.net.encoder3(self.net.proj_feat(hidden[6]))
        e4 = self.net.encoder4(self.net.proj_feat(hidden[9]))
        e5 = self.net.proj_feat(tokens)
        d5 = self.net.decoder5(e5, e4)
        d4 = self.net.decoder4(d5, e3)
        d3 = self.net.decoder3(d4, e2)
        d2 = self.net.decoder2(d3, e1)
        return [e1, e2, e3, e4, e5], [d5, d4, d3, d2], self.net.out(d2)


class SwinUNETRStream(Stream):
    """The features of ``SwinUNETR``, which cannot be scripted in MONAI either.

    Args:
        net: the network.
    """

    def __init__(self, net: SwinUNETR) -> None:
        super().__init__(net, divisor=net.patch_size**5)

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        hidden = self.net.swinViT(x, self.net.normalize)
        e1 = self.net.encoder1(x)
        e2 = self.net.encoder2(hidden[0])
        e3 = self.net.encoder3(hidden[1])
        e4 = self.net.encoder4(hidden[2])
        e10 = self.net.encoder10(hidden[4])
        d5 = self.net.decoder5(e10, hidden[3])
        d4 = self.net.decoder4(d5, e4)
        d3 = self.net.decoder3(d4, e3)
        d2 = self.net.decoder2(d3, e2)
        d1 = self.net.decoder1(d2, e1)
        return [e1, e2, e3, e4, hidden[3], e10], [d5, d4, d3, d2, d1], self.net.out(d1)
