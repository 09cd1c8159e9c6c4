# SPDX-License-Identifier: Apache-2.0
"""Concurrent spatial and channel squeeze & excitation (scSE).

Roy, Navab, Wachinger: "Recalibrating Fully Convolutional Networks with Spatial and Channel 'Squeeze & Excitation'
Blocks", IEEE TMI 2019, https://arxiv.org/abs/1808.08127, Fig. 1 and eqs. 1 to 7.

Differs from the authors' code (ai-med/squeeze_and_excitation) in: 1D, 2D and 3D in one class; all five aggregations;
any memory layout; TorchScript; and a reduction that leaves no hidden channel is an error.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from monai.networks.layers.factories import Conv, Pool, split_args
from monai.utils import has_option, look_up_option
from torch import nn

from monai_attn.blocks.fast_max import larger_product
from monai_attn.blocks.gate import Gate, check_dims

__all__ = [
    "SE_POSITIONS", "ChannelGate", "ChannelSE", "ChannelSpatialSE", "SpatialGate", "SpatialSE", "complete_se",
    "get_se_layer",
]  # fmt: skip

# Table IV: the parts of an encoder-decoder whose outputs are recalibrated
Position = Literal["P1", "P2", "P3", "P4", "P5", "P6"]
Aggregation = Literal["max", "add", "mul", "mul_gate", "concat"]
SE_POSITIONS = {
    "P1": ("encoders",),
    "P2": ("decoders",),
    "P3": ("bottleneck",),
    "P4": ("classifier",),
    "P5": ("encoders", "decoders"),
    "P6": ("encoders", "decoders", "bottleneck", "classifier"),
}


class ChannelGate(nn.Module):
    r"""Channel attention map, :math:`\sigma(W_1\,\mathrm{relu}(W_2 z))`, of the spatial mean :math:`z`.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        in_channels: number of input channels C.
        reduction: the paper's r, for C // r hidden channels.
        bias: whether the linear layers have biases, as in the authors' code; the paper's formula has none.
        gate_bias: initial value of the last bias, our addition: with 3 the map starts near 0.95 instead of 0.5.
            ``None`` for PyTorch's.

    Raises:
        ValueError: if ``reduction`` is below 1 or leaves no hidden channel, or ``gate_bias`` is given without a bias.

    Example:
        >>> ChannelGate(2, 64)(torch.rand(1, 64, 32, 32)).shape
        torch.Size([1, 64, 1, 1])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        reduction: int = 2,
        bias: bool = True,
        gate_bias: float | None = None,
    ) -> None:
        super().__init__()
        check_dims(spatial_dims)
        if reduction < 1 or in_channels // reduction < 1:
            fix = "use a smaller one, or spatial excitation (se='sse') for so few channels"
            raise ValueError(f"reduction must be between 1 and in_channels={in_channels}, got {reduction}; {fix}.")
        self.fc1 = nn.Linear(in_channels, in_channels // reduction, bias=bias)
        self.fc2 = nn.Linear(in_channels // reduction, in_channels, bias=bias)
        _start_bias(self.fc2.bias, gate_bias)
        self.gate = Gate()
        self.pool = Pool[Pool.ADAPTIVEAVG, spatial_dims](1)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map (B, C, 1, ...)."""
        means = self.pool(x)
        return self.gate(self.fc2(torch.relu(self.fc1(means.flatten(1)))).reshape(means.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, *spatial) to the attention map (B, C, 1, ...)."""
        return self.attend(x)


class SpatialGate(nn.Module):
    r"""Spatial attention map, :math:`\sigma(W_{sq} \star U)`, by a 1x1 convolution.

    Args:
        spatial_dims, in_channels: see :class:`ChannelGate`.
        bias: whether the convolution has a bias, as in the authors' code; the paper's formula has none.
        gate_bias: see :class:`ChannelGate`.

    Raises:
        ValueError: if ``spatial_dims`` is not 1, 2 or 3, or ``gate_bias`` is given without a bias.

    Example:
        >>> SpatialGate(3, 16)(torch.rand(1, 16, 8, 8, 8)).shape
        torch.Size([1, 1, 8, 8, 8])
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, *, bias: bool = True, gate_bias: float | None = None
    ) -> None:
        super().__init__()
        check_dims(spatial_dims)
        self.conv = Conv[Conv.CONV, spatial_dims](in_channels, 1, kernel_size=1, bias=bias)
        _start_bias(self.conv.bias, gate_bias)
        self.gate = Gate()

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map (B, 1, *spatial)."""
        return self.gate(self.conv(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, *spatial) to the attention map (B, 1, *spatial)."""
        return self.attend(x)


class ChannelSE(ChannelGate):
    """Channel squeeze & excitation block, cSE (Fig. 1a, eqs. 1 and 2).

    Multiplies the input by the map of :class:`ChannelGate`, whose arguments it takes.

    Example:
        >>> ChannelSE(2, 64)(torch.rand(1, 64, 32, 32)).shape
        torch.Size([1, 64, 32, 32])
    """

    @property
    def out_channels(self) -> int:
        """Number of channels of the output."""
        return self.fc2.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Recalibrate (B, C, *spatial) to (B, C, *spatial)."""
        return x * self.attend(x)


class SpatialSE(SpatialGate):
    """Spatial squeeze & excitation block, sSE (Fig. 1b, eq. 3).

    Multiplies the input by the map of :class:`SpatialGate`, whose arguments it takes.

    Example:
        >>> SpatialSE(3, 16)(torch.rand(1, 16, 8, 8, 8)).shape
        torch.Size([1, 16, 8, 8, 8])
    """

    @property
    def out_channels(self) -> int:
        """Number of channels of the output."""
        return self.conv.in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Recalibrate (B, C, *spatial) to (B, C, *spatial)."""
        return x * self.attend(x)


def _start_bias(bias: nn.Parameter | None, start: float | None) -> None:
    if start is not None:
        if bias is None:
            raise ValueError(f"gate_bias={start} sets a bias, and there is none with bias=False; use bias=True.")
        nn.init.constant_(bias, start)


def _add(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
    return u * channel + u * spatial


def _mul(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
    return (u * channel) * (u * spatial)


def _mul_gate(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
    return u * channel * spatial


def _concat(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
    return torch.cat([u * channel, u * spatial], dim=1)


_AGGREGATIONS = {"max": larger_product, "add": _add, "mul": _mul, "mul_gate": _mul_gate, "concat": _concat}


class ChannelSpatialSE(nn.Module):
    r"""Concurrent spatial and channel squeeze & excitation, scSE (Fig. 1c, eqs. 4 to 7).

    With :math:`g_c` the channel map and :math:`g_s` the spatial map of the input :math:`U`:

    ============== ==================================== ============ ==================================================
    aggregation    output                               channels     source
    ============== ==================================== ============ ==================================================
    ``"max"``      :math:`\max(U g_c, U g_s)`           C            eq. 4; journal version, authors' code
    ``"add"``      :math:`U g_c + U g_s`                C            eq. 5; MICCAI 2018 version, most ports
    ``"mul"``      :math:`U g_c \cdot U g_s`            C            eq. 6 as printed, quadratic in U
    ``"mul_gate"`` :math:`U g_c g_s`                    C            the sentence below eq. 6, linear in U
    ``"concat"``   :math:`[U g_c, U g_s]`               2 C          eq. 7
    ============== ==================================== ============ ==================================================

    Args:
        spatial_dims, in_channels, reduction, bias, gate_bias: see :class:`ChannelGate`.
        aggregation: how to combine the two recalibrated maps, see the table.

    Raises:
        ValueError: if ``aggregation`` is unknown, ``reduction`` leaves no hidden channel, or ``gate_bias`` is given
            without a bias.

    Example:
        >>> ChannelSpatialSE(2, 64, aggregation="concat")(torch.rand(1, 64, 32, 32)).shape
        torch.Size([1, 128, 32, 32])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        *,
        reduction: int = 2,
        aggregation: Aggregation = "max",
        bias: bool = True,
        gate_bias: float | None = None,
    ) -> None:
        super().__init__()
        self.aggregate = look_up_option(aggregation, _AGGREGATIONS)
        self.channel = ChannelGate(spatial_dims, in_channels, reduction=reduction, bias=bias, gate_bias=gate_bias)
        self.spatial = SpatialGate(spatial_dims, in_channels, bias=bias, gate_bias=gate_bias)
        self._out_channels = 2 * in_channels if aggregation == "concat" else in_channels

    @property
    def out_channels(self) -> int:
        """Number of channels of the output."""
        return self._out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Recalibrate (B, C, *spatial) to (B, C or 2 C, *spatial)."""
        return self.aggregate(x, self.channel(x), self.spatial(x))


_LAYERS: dict[str, type[nn.Module]] = {"scse": ChannelSpatialSE, "cse": ChannelSE, "sse": SpatialSE}


def get_se_layer(se: str | tuple | None, spatial_dims: int, in_channels: int) -> nn.Module:
    """Return a squeeze & excitation block by its name.

    Args:
        se: ``"scse"``, ``"cse"`` or ``"sse"``, or ``(name, {args})`` such as ``("scse", {"reduction": 4})``; ``None``
            for the identity.
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        in_channels: number of input channels.

    Raises:
        ValueError: if the name or an argument of the block is not valid.

    Example:
        >>> get_se_layer(("scse", {"aggregation": "concat", "bias": False}), 2, 64).out_channels
        128
    """
    if se is None:
        return nn.Identity()
    name, options = split_args(se)
    return look_up_option(name, _LAYERS)(spatial_dims, in_channels, **options)


def complete_se(se: str | tuple | None, **defaults: Any) -> tuple[str, dict[str, Any]] | None:
    """Add default arguments to a squeeze & excitation block's name.

    Args:
        se: as :func:`get_se_layer` takes it; ``None`` is returned unchanged.
        defaults: arguments of any of the three blocks; those unknown to the block or given in ``se`` are ignored.

    Raises:
        ValueError: if the name is not valid.

    Example:
        >>> complete_se(("cse", {"bias": False}), reduction=4, aggregation="max")
        ('cse', {'reduction': 4, 'bias': False})
    """
    if se is None:
        return None
    name, options = split_args(se)
    layer = look_up_option(name, _LAYERS)
    return name, {key: value for key, value in defaults.items() if has_option(layer, key)} | options
