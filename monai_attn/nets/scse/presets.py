# SPDX-License-Identifier: Apache-2.0
"""Networks of the scSE paper: U-Net, SD-Net, FC-DenseNet, and ReLayNet.

Roy et al. (scSE), IEEE TMI 2019, https://arxiv.org/abs/1808.08127, Sec. III-B and IV-G, Tables I, VI, VII.

================= ============ ======== ============== =================== ============================
network           enc, dec     kernel   norm           down, up            parameters, no SE (1 → 28)
================= ============ ======== ============== =================== ============================
SCSEUNet          4            5x5      none           pool, interpolate   2,154,972
SCSESDNet         3            7x7      batch          pool, unpool        1,812,636
SCSEFCDenseNet    4            5x5      batch          pool, unpool        3,200,674
ReLayNet          3            7x3      batch          pool, unpool        777,482 (1 → 10)
================= ============ ======== ============== =================== ============================

Where the paper contradicts itself, the default matches its parameter counts, which are without SE blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from monai.networks.blocks import Convolution
from monai.utils import look_up_option
from torch import nn

from monai_attn.blocks.squeeze_excite import Aggregation, Position
from monai_attn.blocks.stages import ConvStage, DenseStage, IndexUnpool, UpsampleTo
from monai_attn.nets.scse.fcn import SqueezeExciteFCN

__all__ = ["ReLayNet", "SCSEFCDenseNet", "SCSESDNet", "SCSEUNet"]


class SCSEUNet(SqueezeExciteFCN):
    """U-Net with squeeze & excitation; the defaults are the paper's.

    The paper's text says 3x3 kernels, which contradicts its own table (2.1e6 parameters) and "+1.52 %"; with
    ``kernel_size=3`` it has 777,692 without SE. Other arguments: see :class:`monai_attn.nets.SqueezeExciteFCN`.

    Args:
        kernel_size: 5 (table) or 3 (text).
        norm: normalization, as a name or ``(name, {args})``; the paper has none.
        upsample: ``"nearest"`` or ``"linear"``; the paper does not say.

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
        positions: Position = "P5",
        reduction: int = 2,
        aggregation: Aggregation = "max",
        skip: Literal["recalibrated", "raw"] = "recalibrated",
        depth: int = 4,
        kernel_size: Sequence[int] | int = 5,
        norm: str | tuple | None = None,
        upsample: Literal["nearest", "linear"] = "nearest",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stage=partial(ConvStage, spatial_dims, kernel_size=kernel_size, num_convs=2, norm=norm),
            up=UpsampleTo(spatial_dims, upsample),
            depth=depth,
            features=features,
            se=se,
            positions=positions,
            reduction=reduction,
            aggregation=aggregation,
            skip=skip,
            dropout=dropout,
        )


class SCSESDNet(SqueezeExciteFCN):
    """SD-Net with squeeze & excitation; the defaults are the paper's.

    Sec. III-B says 4 encoders, but Table VII starts from 3; ``depth=4`` gives the text's network (2,415,132 parameters
    without SE). The norm precedes the activation in the paper, and follows it in the authors' PyTorch code. Other
    arguments: see :class:`monai_attn.nets.SqueezeExciteFCN`.

    Args:
        kernel_size: size of the kernels, odd; by default 7 in every dimension.
        act: activation, as a name or ``(name, {args})``.

    Example:
        >>> SCSESDNet(2, 1, 28)(torch.rand(1, 1, 36, 45)).shape
        torch.Size([1, 28, 36, 45])
    """

    default_kernel_size = (7, 7, 7)

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        features: int = 64,
        se: str | tuple | None = "scse",
        positions: Position = "P5",
        reduction: int = 2,
        aggregation: Aggregation = "max",
        skip: Literal["recalibrated", "raw"] = "recalibrated",
        depth: int = 3,
        kernel_size: Sequence[int] | int | None = None,
        act: str | tuple = "relu",
        dropout: float = 0.0,
    ) -> None:
        size = self.default_kernel_size[:spatial_dims] if kernel_size is None else kernel_size
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stage=partial(ConvStage, spatial_dims, kernel_size=size, act=act, norm="batch"),
            up=IndexUnpool(spatial_dims),
            depth=depth,
            features=features,
            se=se,
            positions=positions,
            reduction=reduction,
            aggregation=aggregation,
            skip=skip,
            dropout=dropout,
        )


class ReLayNet(SCSESDNet):
    """ReLayNet for retinal OCT, with squeeze & excitation.

    Roy et al.: "ReLayNet: retinal layer and fluid segmentation of macular optical coherence tomography using fully
    convolutional networks", Biomedical Optics Express 2017, https://arxiv.org/abs/1704.02161.

    An :class:`SCSESDNet` with kernels 7 high and 3 wide (and 3 deep), so images must be (H, W). Their PyTorch code has
    ``kernel_size=(3, 7)``, ``act="prelu"`` and 9 classes (777,424 parameters without SE).

    Example:
        >>> ReLayNet(2, 1, 10)(torch.rand(1, 1, 128, 64)).shape
        torch.Size([1, 10, 128, 64])
    """

    default_kernel_size = (7, 3, 3)


class SCSEFCDenseNet(SqueezeExciteFCN):
    """FC-DenseNet with squeeze & excitation; the defaults are the paper's.

    The paper does not describe the bottleneck; a 1x1 convolution matches its count (3.1e6 convolution weights). Other
    arguments: see :class:`monai_attn.nets.SqueezeExciteFCN`.

    Args:
        bottleneck: ``"conv1x1"`` (default), ``"conv5x5_bn"`` (QuickNATv2) or ``"dense"`` (quickNAT_pytorch).
        act: activation, as a name or ``(name, {args})``; ``"prelu"`` has one slope per stage (quickNAT_pytorch).

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
        positions: Position = "P5",
        reduction: int = 2,
        aggregation: Aggregation = "max",
        skip: Literal["recalibrated", "raw"] = "recalibrated",
        depth: int = 4,
        bottleneck: Literal["conv1x1", "conv5x5_bn", "dense"] = "conv1x1",
        act: str | tuple = "relu",
        dropout: float = 0.0,
    ) -> None:
        stage = partial(DenseStage, spatial_dims, act=act)
        bottlenecks: dict[str, Callable[[int, int], nn.Module]] = {
            "conv1x1": partial(Convolution, spatial_dims, kernel_size=1, conv_only=True),
            "conv5x5_bn": partial(ConvStage, spatial_dims, kernel_size=5, act=None, norm="batch"),
            "dense": stage,
        }
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            stage=stage,
            bottleneck=look_up_option(bottleneck, bottlenecks),
            up=IndexUnpool(spatial_dims),
            depth=depth,
            features=features,
            se=se,
            positions=positions,
            reduction=reduction,
            aggregation=aggregation,
            skip=skip,
            dropout=dropout,
        )
