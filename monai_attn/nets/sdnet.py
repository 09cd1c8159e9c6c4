# SPDX-License-Identifier: Apache-2.0
"""The SD-Net of scSE (Roy 2018, https://arxiv.org/abs/1808.08127, Sec. III-B and Tables I and VII).

3 encoders, bottleneck, 3 decoders of 7x7 convolution - batch norm - ReLU, pooling with indices and unpooling:
1,812,636 parameters for 28 classes. Sec. III-B says 4 encoders, but Table VII counts from 3; ``depth=4`` gives the
text's network (2,415,132). The authors' PyTorch code normalises after the activation; this is the paper's order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from monai_attn.blocks.stages import ConvStage, IndexUnpool
from monai_attn.nets.fcn import SqueezeExciteFCN

__all__ = ["SCSESDNet"]


class SCSESDNet(SqueezeExciteFCN):
    """SD-Net with squeeze & excitation; the defaults are the paper's.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 (the paper) or 3.
        in_channels: number of input channels.
        out_channels: number of classes.
        features: number of channels of every stage.
        se, positions, reduction, aggregation, skip: see :class:`monai_attn.nets.SqueezeExciteFCN`.
        depth: number of encoders and of decoders.
        kernel_size: size of the kernels, odd.
        act: activation, as a name or ``(name, {args})``.
        norm: normalisation, as a name or ``(name, {args})``.
        dropout: probability to drop a channel after every stage.

    Example:
        >>> SCSESDNet(2, 1, 28)(torch.rand(1, 1, 36, 45)).shape
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
        depth: int = 3,
        kernel_size: Sequence[int] | int = 7,
        act: str | tuple = "relu",
        norm: str | tuple | None = "batch",
        dropout: float = 0.0,
    ) -> None:
        stage = partial(ConvStage, spatial_dims, kernel_size=kernel_size, act=act, norm=norm)
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stage=stage,
            bottleneck=stage,
            up=IndexUnpool(),
            depth=depth,
            features=features,
            se=se,
            positions=positions,
            reduction=reduction,
            aggregation=aggregation,
            skip=skip,
            dropout=dropout,
        )
