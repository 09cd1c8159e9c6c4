# SPDX-License-Identifier: Apache-2.0
"""ReLayNet, the retinal OCT network of scSE (Roy 2018, https://arxiv.org/abs/1808.08127, Sec. IV-G).

Roy et al.: "ReLayNet: retinal layer and fluid segmentation of macular optical coherence tomography using fully
convolutional networks", Biomedical Optics Express 2017, https://arxiv.org/abs/1704.02161.

An SD-Net whose kernels are 7 high and 3 wide, so images must be (H, W): 777,482 parameters for 10 classes. The
released PyTorch code has kernels of 3x7, PReLU and 9 classes (777,424 parameters).
"""

from __future__ import annotations

from collections.abc import Sequence

from monai_attn.nets.sdnet import SCSESDNet

__all__ = ["ReLayNet"]


class ReLayNet(SCSESDNet):
    """ReLayNet with squeeze & excitation; the defaults are the paper's.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 (the paper) or 3.
        in_channels: number of input channels.
        out_channels: number of classes.
        features: number of channels of every stage.
        se, positions, reduction, aggregation, skip: see :class:`monai_attn.nets.SqueezeExciteFCN`.
        depth: number of encoders and of decoders.
        kernel_size: size of the kernels, odd; by default 7 along the height and 3 along every other dimension.
        act: activation, as a name or ``(name, {args})``; ``"prelu"`` in the released PyTorch code.
        norm: normalisation, as a name or ``(name, {args})``.
        dropout: probability to drop a channel after every stage.

    Example:
        >>> ReLayNet(2, 1, 10)(torch.rand(1, 1, 128, 64)).shape
        torch.Size([1, 10, 128, 64])
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
        kernel_size: Sequence[int] | int | None = None,
        act: str | tuple = "relu",
        norm: str | tuple | None = "batch",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            spatial_dims,
            in_channels,
            out_channels,
            features=features,
            se=se,
            positions=positions,
            reduction=reduction,
            aggregation=aggregation,
            skip=skip,
            depth=depth,
            kernel_size=(7, 3, 3)[:spatial_dims] if kernel_size is None else kernel_size,
            act=act,
            norm=norm,
            dropout=dropout,
        )
