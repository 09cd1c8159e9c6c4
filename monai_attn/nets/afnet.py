# SPDX-License-Identifier: Apache-2.0
"""AFNet, the autofocus networks AFN-1 to AFN-6, and their baseline Basic.

Qin et al.: "Autofocus Layer for Semantic Segmentation", MICCAI 2018, https://arxiv.org/abs/1805.08403, Sec. 3, Fig. 3
and Tables 2 and 3.

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

The parameters are counted from the authors' code without its 410 inert biases. The paper trains on crops of 75 voxels:
AFN-3 to AFN-6 see farther, hence never see a whole field without zero padding in training.

Differs from the authors' code (yaq007/Autofocus-Layer) in: see :mod:`monai_attn.nets.dilated`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from monai.networks.layers.factories import Conv
from torch import nn

from monai_attn.inferers.steps import LayerStep
from monai_attn.nets.dilated import DilatedTrunk, initialise

__all__ = ["AFNet", "afn1", "afn2", "afn3", "afn4", "afn5", "afn6"]


class AFNet(nn.Module):
    """A network at full resolution whose last dilated layers are autofocus layers.

    With ``padding="official"`` the output is smaller than the input. MONAI's ``SlidingWindowInferer`` takes this for
    another resolution and returns a rescaled volume without an error: use :class:`monai_attn.inferers.HaloInferer`.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3 (the paper).
        in_channels: number of input channels.
        out_channels: number of classes, with the background.
        n_autofocus: the n of AFN-n, 0 (Basic) to 6: how many of the dilated layers are autofocus layers, from the last.
        channels: channels of the layers: two plain layers, then two for each residual block.
        dilations: dilations of the autofocus layers.
        norm: normalisation, as a name or ``(name, {args})``; ``None`` for none.
        padding: ``"same"``, or ``"official"``: 14 voxels fewer at every side, as in the authors' code.
        detach_attention: whether attention sends no gradient to the features, as in the authors' code.
        share_weights: whether the scales of an autofocus layer share one kernel, as in the paper.
        init: ``"default"``, PyTorch's, or ``"paper"``, N(0, 0.01) as in the authors' code, which starts attention
            almost uniform.
        memory_efficient: whether the autofocus layers are computed again in the backward pass instead of being kept.

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
        padding: str = "same",
        detach_attention: bool = True,
        share_weights: bool = True,
        init: str = "default",
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = DilatedTrunk(
            spatial_dims,
            in_channels,
            channels=channels,
            n_autofocus=n_autofocus,
            dilations=dilations,
            norm=norm,
            padding=padding,
            detach_attention=detach_attention,
            share_weights=share_weights,
            memory_efficient=memory_efficient,
        )
        self.classifier = Conv[Conv.CONV, spatial_dims](self.trunk.out_channels, out_channels, kernel_size=1)
        self.receptive_radius = self.trunk.receptive_radius
        self.crop = self.trunk.crop
        initialise(self, init)

    def layerwise(self) -> list[LayerStep]:
        """The layers one by one, for :class:`monai_attn.inferers.LayerwiseInferer`."""
        *steps, last = self.trunk.layerwise()
        return [*steps, last.then(self.classifier)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (B, in_channels, *spatial) to logits (B, out_channels, *(spatial - 2 crop))."""
        return self.classifier(self.trunk(x))


afn1 = partial(AFNet, n_autofocus=1)
afn2 = partial(AFNet, n_autofocus=2)
afn3 = partial(AFNet, n_autofocus=3)
afn4 = partial(AFNet, n_autofocus=4)
afn5 = partial(AFNet, n_autofocus=5)
afn6 = partial(AFNet, n_autofocus=6)
