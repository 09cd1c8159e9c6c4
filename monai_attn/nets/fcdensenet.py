# SPDX-License-Identifier: Apache-2.0
"""The FC-DenseNet of scSE (Roy 2018, https://arxiv.org/abs/1808.08127, Sec. III-B and Table I), and QuickNAT.

4 encoders, bottleneck, 4 decoders of dense stages, pooling with indices and unpooling: 3,200,674 parameters for 28
classes. The paper does not describe its bottleneck; a 1x1 convolution is what its parameter count (3.1e6 convolution
weights) leaves. The authors' later codes differ: QuickNATv2 has a 5x5 convolution with batch norm, quickNAT_pytorch a
full dense stage.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from monai.networks.blocks import Convolution
from monai.utils import look_up_option
from torch import nn

from monai_attn.blocks.stages import ConvStage, DenseStage, IndexUnpool
from monai_attn.nets.fcn import SqueezeExciteFCN

__all__ = ["SCSEFCDenseNet"]


class SCSEFCDenseNet(SqueezeExciteFCN):
    """FC-DenseNet with squeeze & excitation; the defaults are the paper's.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 (the paper) or 3.
        in_channels: number of input channels.
        out_channels: number of classes.
        features: number of channels of every stage.
        se, positions, reduction, aggregation, skip: see :class:`monai_attn.nets.SqueezeExciteFCN`.
        depth: number of encoders and of decoders.
        bottleneck: ``"conv1x1"`` (default), ``"conv5x5_bn"`` (QuickNATv2) or ``"dense"`` (quickNAT_pytorch).
        act: activation, as a name or ``(name, {args})``; ``"prelu"`` has one slope per stage (quickNAT_pytorch).
        norm: normalisation, as a name or ``(name, {args})``.
        dropout: probability to drop a channel after every stage.

    Raises:
        ValueError: if ``bottleneck`` is unknown.

    Example:
        >>> SCSEFCDenseNet(2, 1, 28)(torch.rand(1, 1, 36, 45)).shape
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
        bottleneck: str = "conv1x1",
        act: str | tuple = "relu",
        norm: str | tuple = "batch",
        dropout: float = 0.0,
    ) -> None:
        stage = partial(DenseStage, spatial_dims, act=act, norm=norm)
        bottlenecks: dict[str, Callable[[int, int], nn.Module]] = {
            "conv1x1": partial(Convolution, spatial_dims, kernel_size=1, conv_only=True),
            "conv5x5_bn": partial(ConvStage, spatial_dims, kernel_size=5, act=None, norm=norm),
            "dense": stage,
        }
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stage=stage,
            bottleneck=look_up_option(bottleneck, bottlenecks),
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
