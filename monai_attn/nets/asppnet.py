# SPDX-License-Identifier: Apache-2.0
"""ASPP-c and ASPP-s, the baselines of AFNet.

Qin et al.: "Autofocus Layer for Semantic Segmentation", MICCAI 2018, https://arxiv.org/abs/1805.08403, Sec. 3 and
Table 2. The trunk of the network Basic, without its classifier, and atrous spatial pyramid pooling behind it:
477,905 (``"cat"``) and 966,440 (``"sum"``) parameters for 4 channels and 5 classes.

Differs from the authors' code (yaq007/Autofocus-Layer) in: see :mod:`monai_attn.nets.dilated` and
:mod:`monai_attn.blocks.aspp`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from monai_attn.blocks.aspp import ASPP
from monai_attn.inferers.steps import LayerStep
from monai_attn.nets.dilated import DilatedTrunk, initialise

__all__ = ["ASPPNet"]


class ASPPNet(nn.Module):
    """The trunk of AFNet without autofocus layers, and atrous spatial pyramid pooling as the classifier.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3 (the paper).
        in_channels: number of input channels.
        out_channels: number of classes, with the background.
        fusion: ``"cat"`` for the paper's ASPP-c, ``"sum"`` for its ASPP-s.
        channels: channels of the trunk's layers: two plain layers, then two for each residual block.
        features: channels of each dilated convolution of the pyramid; by default 30 for ``"cat"``, 120 for ``"sum"``.
        dilations: dilations of the pyramid.
        norm: normalisation, as a name or ``(name, {args})``; ``None`` for none.
        padding: ``"same"``, or ``"official"``: 14 voxels fewer at every side, as in the authors' code.
        init: ``"default"``, PyTorch's, or ``"paper"``, N(0, 0.01) as in the authors' code.

    Attributes:
        receptive_radius: how far an output voxel sees in the input, in voxels.
        crop: voxels that the output loses at every side, 0 or 14.

    Raises:
        ValueError: if an argument is out of its range, or an input too small for ``padding="official"``.

    Example:
        >>> net = ASPPNet(3, 4, 5, fusion="sum", channels=(4, 4, 6, 6, 6, 6, 8, 8))
        >>> net(torch.rand(1, 4, 9, 10, 11)).shape, net.receptive_radius
        (torch.Size([1, 5, 9, 10, 11]), 28)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        fusion: str = "cat",
        channels: Sequence[int] = (30, 30, 40, 40, 40, 40, 50, 50),
        features: int | None = None,
        dilations: Sequence[int] = (2, 6, 10, 14),
        norm: str | tuple | None = "batch",
        padding: str = "same",
        init: str = "default",
    ) -> None:
        super().__init__()
        self.trunk = DilatedTrunk(spatial_dims, in_channels, channels=channels, norm=norm, padding=padding)
        self.classifier = ASPP(
            spatial_dims,
            self.trunk.out_channels,
            out_channels,
            dilations=dilations,
            fusion=fusion,
            features=features,
            norm=norm,
        )
        self.receptive_radius = self.trunk.receptive_radius + self.classifier.radius
        self.crop = self.trunk.crop
        initialise(self, init)

    def layerwise(self) -> list[LayerStep]:
        """The layers one by one, for :class:`monai_attn.inferers.LayerwiseInferer`."""
        return [*self.trunk.layerwise(), LayerStep(self.classifier, self.classifier.radius)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, *spatial) to logits (B, out_channels, *(spatial - 2 crop))."""
        return self.classifier(self.trunk(x))
