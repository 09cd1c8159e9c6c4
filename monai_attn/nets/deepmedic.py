# SPDX-License-Identifier: Apache-2.0
"""DeepMedic, a baseline of AFNet.

Kamnitsas, Ledig, Newcombe, Simpson, Kane, Menon, Rueckert, Glocker: "Efficient multi-scale 3D CNN with fully connected
CRF for accurate brain lesion segmentation", Medical Image Analysis 2017, https://arxiv.org/abs/1603.05959, Fig. 5; with
the residual connections of Kamnitsas et al.: "DeepMedic for Brain Tumor Segmentation", BrainLes 2016.

Differs from the authors' code (deepmedic/deepmedic) in: the output keeps the size of the input, whereas their paths
crop; the second path sees the whole image averaged by ``scale``; ReLU by default instead of PReLU; and no bias where a
normalisation follows, which makes it inert. As in their code a sum is taken before normalisation and activation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv, Pool
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from torch import nn

__all__ = ["DeepMedic"]


class DeepMedic(nn.Module):
    """Two equal paths, at full and at low resolution, joined by layers of 1x1 convolutions.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3 (the paper).
        in_channels: number of input channels.
        out_channels: number of classes, with the background.
        channels: channels of each path: two plain layers, then two for each residual block.
        fc_channels: channels of the two 1x1 layers (the article's 150; later configurations have 250).
        scale: by which factor the second path's image is smaller.
        act: activation, as a name or ``(name, {args})``.
        norm: normalisation, as a name or ``(name, {args})``; ``None`` for none.
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
        norm: str | tuple | None = "batch",
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if len(channels) < 4 or len(channels) % 2:
            raise ValueError(f"channels must be 2 and 2 more for each block, at least 4 in all, got {tuple(channels)}.")
        if scale < 1:
            raise ValueError(f"scale must be at least 1, got {scale}.")

        def layer(inputs: int, outputs: int, *, size: int = 3, drop: float = 0.0, bias: bool = False) -> nn.Module:
            return nn.Sequential(
                get_norm_layer(norm or "", spatial_dims, inputs),
                get_act_layer(act),
                nn.Dropout(drop),
                Conv[Conv.CONV, spatial_dims](inputs, outputs, size, padding=size // 2, bias=bias),
            )

        def path() -> nn.Sequential:
            first = Conv[Conv.CONV, spatial_dims](in_channels, channels[0], kernel_size=3, padding=1, bias=False)
            blocks = [
                _ZeroPaddedResidual(nn.Sequential(layer(inputs, middle), layer(middle, outputs)), inputs, outputs)
                for inputs, middle, outputs in zip(channels[1::2], channels[2::2], channels[3::2])
            ]
            return nn.Sequential(first, layer(channels[0], channels[1]), *blocks)

        self.scale = scale
        self.full = path()
        self.down = Pool[Pool.AVG, spatial_dims](scale, ceil_mode=True)
        self.low = path()
        widths = [2 * channels[-1], *fc_channels, out_channels]
        last = len(fc_channels)
        self.classifier = nn.Sequential(
            *(
                layer(widths[index], widths[index + 1], size=1, drop=dropout if index else 0.0, bias=index == last)
                for index in range(last + 1)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, *spatial) to logits (B, out_channels, *spatial)."""
        full = self.full(x)
        low = self.low(self.down(x))
        for dim in range(2, x.dim()):
            low = low.repeat_interleave(self.scale, dim).narrow(dim, 0, x.shape[dim])
        return self.classifier(torch.cat([full, low], dim=1))


class _ZeroPaddedResidual(nn.Module):
    """``body(x) + x``, where channels that ``x`` lacks are zero."""

    def __init__(self, body: nn.Module, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.body = body
        self.missing = out_channels - in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padding = [0] * (2 * (x.dim() - 2)) + [0, self.missing]
        return self.body(x) + F.pad(x, padding)
