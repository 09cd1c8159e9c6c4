# SPDX-License-Identifier: Apache-2.0
"""Losses of EG-CNN, and for class imbalance and crops."""

from __future__ import annotations

from monai_attn.losses.class_balance import ClassBalancedLoss, CropBorderLoss
from monai_attn.losses.consistency import EdgeConsistencyLoss
from monai_attn.losses.edge import BalancedBCELoss, EdgeLoss, EGCNNLoss

__all__ = [
    "BalancedBCELoss", "ClassBalancedLoss", "CropBorderLoss", "EGCNNLoss", "EdgeConsistencyLoss", "EdgeLoss",
]  # fmt: skip
