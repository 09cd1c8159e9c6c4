# SPDX-License-Identifier: Apache-2.0
"""MONAI's convolutional networks whose stages are attributes: Basic U-Net, V-Net, DynUNet and Flexible U-Net."""

from __future__ import annotations

import torch
from monai.networks.nets import BasicUNet, DynUNet, FlexibleUNet, VNet

from monai_attn.adapt.streams.base import Features, Stream, total_stride

__all__ = ["BasicUNetStream", "DynUNetStream", "FlexibleUNetStream", "VNetStream"]


class BasicUNetStream(Stream):
    """The features of ``BasicUNet``.

    Args:
        net: the network.
    """

    def __init__(self, net: BasicUNet) -> None:
        super().__init__(net, divisor=16)

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        x0 = self.net.conv_0(x)
        x1 = self.net.down_1(x0)
        x2 = self.net.down_2(x1)
        x3 = self.net.down_3(x2)
        x4 = self.net.down_4(x3)
        u4 = self.net.upcat_4(x4, x3)
        u3 = self.net.upcat_3(u4, x2)
        u2 = self.net.upcat_2(u3, x1)
        u1 = self.net.upcat_1(u2, x0)
        return [x0, x1, x2, x3, x4], [u4, u3, u2, u1], self.net.final_conv(u1)


class VNetStream(Stream):
    """The features of ``VNet``.

    Args:
        net: the network.
    """

    def __init__(self, net: VNet) -> None:
        super().__init__(net, divisor=16)

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        x0 = self.net.in_tr(x)
        x1 = self.net.down_tr32(x0)
        x2 = self.net.down_tr64(x1)
        x3 = self.net.down_tr128(x2)
        x4 = self.net.down_tr256(x3)
        u4 = self.net.up_tr256(x4, x3)
        u3 = self.net.up_tr128(u4, x2)
        u2 = self.net.up_tr64(u3, x1)
        u1 = self.net.up_tr32(u2, x0)
        return [x0, x1, x2, x3, x4], [u4, u3, u2, u1], self.net.out_tr(u1)


class DynUNetStream(Stream):
    """The features of ``DynUNet``. Heads of deep supervision are not run.

    Args:
        net: the network.
    """

    def __init__(self, net: DynUNet) -> None:
        super().__init__(net, divisor=total_stride(net.strides, net.spatial_dims))

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        x = self.net.input_block(x)
        encoder = [x]
        decoder: list[torch.Tensor] = []
        for down in self.net.downsamples:
            x = down(x)
            encoder.append(x)
        x = self.net.bottleneck(x)
        encoder.append(x)
        for i, up in enumerate(self.net.upsamples):
            x = up(x, encoder[-2 - i])
            decoder.append(x)
        return encoder, decoder, self.net.output_block(x)


class FlexibleUNetStream(Stream):
    """The features of ``FlexibleUNet``, the finest at half the image's size.

    Args:
        net: the network.
    """

    def __init__(self, net: FlexibleUNet) -> None:
        super().__init__(net, divisor=32)

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        encoder = self.net.encoder(x)
        decoder: list[torch.Tensor] = []
        x = encoder[-1]
        for i, block in enumerate(self.net.decoder.blocks):
            x = block(x, encoder[-2 - i] if i < self.net.skip_connect else None)
            decoder.append(x)
        return encoder, decoder, self.net.segmentation_head(x)
