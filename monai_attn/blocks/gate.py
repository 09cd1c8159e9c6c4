# SPDX-License-Identifier: Apache-2.0
"""Attention gate, the last layer of attention blocks, and edge gate.

The output of a gate is the attention map, so :func:`monai_attn.visualize.capture_attention` finds the maps of any
network.

Edge gate: Hatamizadeh et al. (EG-CNN), arXiv 2020, https://arxiv.org/abs/2002.04207, Sec. 2.2, eqs. 1 and 2. The
authors have not released code. Where the paper is silent, we chose: one attention map, and a 1x1 kernel for the
"residual layer", which eq. 2 does not show; it starts as the identity, so that eq. 2 holds exactly at the start.
"""

from __future__ import annotations

from typing import Literal

import torch
from monai.networks.layers.factories import Conv
from monai.utils import look_up_option
from torch import nn

__all__ = ["EdgeGate", "Gate", "check_dims"]


def check_dims(spatial_dims: int) -> None:
    """Raise an error unless there are 1, 2 or 3 spatial dimensions."""
    if spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims}.")


class Gate(nn.Module):
    """Activation that turns logits into an attention map.

    Args:
        activation: ``"sigmoid"`` for a map of independent values in [0, 1] (scSE, FocusNet, EG-CNN), ``"softmax"``
            for values that sum to one over the channel dimension (Autofocus).

    Raises:
        ValueError: if ``activation`` is neither of the two.

    Example:
        >>> Gate("softmax")(torch.zeros(1, 4, 8, 8))[0, :, 0, 0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def __init__(self, activation: Literal["sigmoid", "softmax"] = "sigmoid") -> None:
        super().__init__()
        activations = {"sigmoid": nn.Sigmoid(), "softmax": nn.Softmax(dim=1)}
        self.activation = look_up_option(activation, activations)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Map logits (B, C, *spatial) to the attention map (B, C, *spatial)."""
        return self.activation(logits)


class EdgeGate(nn.Module):
    r"""Edge gate (EG-CNN): main features attend to edge features.

    With edge features :math:`e` and main features :math:`m` of the same size,
    :math:`\alpha = \sigma(\mathrm{relu}(W_e e + W_m m))` and the output is :math:`w (e \cdot \alpha + e)`.

    Because of the ReLU, maps of eq. 1 are in [0.5, 1), never suppress an edge, and have no gradient where the sum is
    negative. With ``gate="sigmoid"`` there is no ReLU, and maps are in (0, 1).

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        edge_channels, main_channels: numbers of channels of the edge and main features.
        attention_channels: 1 for one map for all features, or None for a map for each of the ``edge_channels``.
        project: whether to apply the 1x1 convolution :math:`w`.
        gate: ``"relu_sigmoid"`` (eq. 1) or ``"sigmoid"``.

    Raises:
        ValueError: if ``spatial_dims``, ``attention_channels`` or ``gate`` is not valid.

    Example:
        >>> EdgeGate(3, 16, 32)(torch.rand(1, 16, 8, 8, 8), torch.rand(1, 32, 8, 8, 8)).shape
        torch.Size([1, 16, 8, 8, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        edge_channels: int,
        main_channels: int,
        *,
        attention_channels: int | None = 1,
        project: bool = True,
        gate: Literal["relu_sigmoid", "sigmoid"] = "relu_sigmoid",
    ) -> None:
        super().__init__()
        check_dims(spatial_dims)
        if attention_channels not in (1, None, edge_channels):
            raise ValueError(f"attention_channels must be 1 or None (one for each channel), got {attention_channels}.")
        conv = Conv[Conv.CONV, spatial_dims]
        maps = attention_channels or edge_channels
        self.edge_conv = conv(edge_channels, maps, kernel_size=1)
        self.main_conv = conv(main_channels, maps, kernel_size=1)
        self.act = look_up_option(gate, {"relu_sigmoid": nn.ReLU(), "sigmoid": nn.Identity()})
        self.gate = Gate()
        self.project = nn.Identity()
        if project:
            projection = conv(edge_channels, edge_channels, kernel_size=1, bias=False)
            nn.init.dirac_(projection.weight)
            self.project = projection

    def forward(self, edges: torch.Tensor, main: torch.Tensor) -> torch.Tensor:
        """Map edge and main features (B, channels, *spatial) to (B, edge_channels, *spatial)."""
        attention = self.gate(self.act(self.edge_conv(edges) + self.main_conv(main)))
        return self.project(edges * attention + edges)
