# SPDX-License-Identifier: Apache-2.0
"""Losses that MONAI does not have."""

from __future__ import annotations

from monai_attn.losses.central import CropBorderLoss
from monai_attn.losses.class_balance import ClassBalancedLoss, median_frequency_weights
from monai_attn.losses.consistency import EdgeConsistencyLoss
from monai_attn.losses.edge import BalancedBCELoss, EdgeLoss
from monai_attn.losses.egcnn import EGCNNLoss

__all__ = [
    "BalancedBCELoss",
    "ClassBalancedLoss",
    "CropBorderLoss",
    "EGCNNLoss",
    "EdgeConsistencyLoss",
    "EdgeLoss",
    "median_frequency_weights",
]
