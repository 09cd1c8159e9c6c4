# SPDX-License-Identifier: Apache-2.0
"""Attention blocks to drop into any MONAI network."""

from __future__ import annotations

from monai_attn.blocks.autofocus import AutofocusConv
from monai_attn.blocks.gate import EdgeGate, Gate
from monai_attn.blocks.residual import PreActResidual
from monai_attn.blocks.squeeze_excite import (
    ChannelGate,
    ChannelSE,
    ChannelSpatialSE,
    SpatialGate,
    SpatialSE,
    get_se_layer,
)

__all__ = [
    "AutofocusConv", "ChannelGate", "ChannelSE", "ChannelSpatialSE", "EdgeGate", "Gate", "PreActResidual",
    "SpatialGate", "SpatialSE", "get_se_layer",
]  # fmt: skip
