# SPDX-License-Identifier: Apache-2.0
"""Pre-activation residual block of FocusNet and EG-CNN.

He, Zhang, Ren, Sun: "Identity Mappings in Deep Residual Networks", https://arxiv.org/abs/1603.05027, Fig. 1b.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_act_layer, get_norm_layer
from monai.utils import look_up_option
from torch import nn

__all__ = ["PreActResidual"]


class PreActResidual(nn.Module):
    r"""Pre-activation residual block of two 3x3 convolutions, :math:`F(x) + S(x)`.

    :math:`F(x) = W_2\,a(n_2(W_1\,a(n_1(x))))` with norm :math:`n` and activation :math:`a`. The shortcut :math:`S` is
    the identity, or a 1x1 convolution of the raw input where the number of channels or the size changes.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        in_channels, out_channels: numbers of channels.
        stride: stride of the first convolution and of the shortcut; an odd side is rounded up.
        preact: whether the block begins with norm and activation, not with a convolution.
        padding: where a strided convolution pads an even side: ``"symmetric"`` one voxel at either end (PyTorch),
            ``"tf"`` at the far end only (TensorFlow's "same"). It makes no difference at stride 1.
        act, norm: activation and normalization, as a name or ``(name, {args})``.
        dropout: dropout probability of :math:`F(x)`.
        bias: whether the convolutions have biases.

    Raises:
        ValueError: if ``padding`` is neither of the two.

    Example:
        >>> PreActResidual(2, 32, 64, stride=2)(torch.rand(1, 32, 20, 31)).shape
        torch.Size([1, 64, 10, 16])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        preact: bool = True,
        padding: Literal["symmetric", "tf"] = "symmetric",
        act: str | tuple = "relu",
        norm: str | tuple = "batch",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, spatial_dims]
        pad_end = look_up_option(padding, {"symmetric": False, "tf": True}) and stride > 1
        before = [get_norm_layer(norm, spatial_dims, in_channels), get_act_layer(act)] if preact else []
        self.before = nn.Sequential(*before, _PadSame(spatial_dims, stride) if pad_end else nn.Identity())
        self.conv1 = conv(in_channels, out_channels, 3, stride=stride, padding=0 if pad_end else 1, bias=bias)
        self.norm = get_norm_layer(norm, spatial_dims, out_channels)
        self.act = get_act_layer(act)
        self.conv2 = conv(out_channels, out_channels, 3, padding=1, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = conv(in_channels, out_channels, 1, stride=stride, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to (B, out_channels, *ceil(spatial / stride))."""
        x, shortcut = self.conv1(self.before(x)), self.shortcut(x)
        return self.dropout(self.conv2(self.act(self.norm(x)))) + shortcut


class _PadSame(nn.Module):
    """Pad for a strided 3x3 convolution as TensorFlow's "same" does: what is missing, the odd voxel at the far end."""

    def __init__(self, spatial_dims: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self._axes = list(range(1 + spatial_dims, 1, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for dim in self._axes:
            missing = 2 - (x.shape[dim] - 1) % self.stride
            pads += [missing // 2, missing - missing // 2]
        return F.pad(x, pads)
