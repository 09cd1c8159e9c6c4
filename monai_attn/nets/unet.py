# SPDX-License-Identifier: Apache-2.0
"""The U-Net of scSE (Roy 2018, https://arxiv.org/abs/1808.08127, Sec. III-B and Table I).

4 encoders, bottleneck, 4 decoders of two 5x5 convolutions with ReLU and no normalisation, parameter-free upsampling:
2,154,972 parameters for 28 classes. The paper's text says 3x3, which contradicts its own table (2.1e6) and "+1.52 %";
``kernel_size=3`` gives the text's network (777,692).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from monai_attn.blocks.stages import ConvStage, Upsample
from monai_attn.nets.fcn import SqueezeExciteFCN

__all__ = ["SCSEUNet"]


class SCSEUNet(SqueezeExciteFCN):
    """U-Net with squeeze & excitation; the defaults are the paper's.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 (the paper) or 3.
        in_channels: number of input channels.
        out_channels: number of classes.
        features: number of channels of every stage.
        se, positions, reduction, aggregation, skip: see :class:`monai_attn.nets.SqueezeExciteFCN`.
        depth: number of encoders and of decoders.
        kernel_size: 5 (table) or 3 (text).
        norm: normalisation, as a name or ``(name, {args})``; the paper has none.
        upsample: ``"nearest"`` or ``"linear"``; the paper does not say.
        dropout: probability to drop a channel after every stage.

    Example:
        >>> SCSEUNet(2, 1, 28)(torch.rand(1, 1, 36, 45)).shape
        torch.Size([1, 28, 36, 45])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        features: int = 64,
        se: str | tuple | None = "scse",
        positions: str = "P5",
        reduction: int = 2,
        aggregation: str = "max",
        skip: str = "recalibrated",
        depth: int = 4,
        kernel_size: Sequence[int] | int = 5,
        norm: str | tuple | None = None,
        upsample: str = "nearest",
        dropout: float = 0.0,
    ) -> None:
        stage = partial(ConvStage, spatial_dims, kernel_size=kernel_size, num_convs=2, norm=norm)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stage=stage,
            bottleneck=stage,
            up=Upsample(spatial_dims, upsample),
            depth=depth,
            features=features,
            se=se,
            positions=positions,
            reduction=reduction,
            aggregation=aggregation,
            skip=skip,
            dropout=dropout,
        )
