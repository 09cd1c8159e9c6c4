# SPDX-License-Identifier: Apache-2.0
"""Losses that MONAI does not have."""

from __future__ import annotations

from monai_attn.losses.central import CentralLoss
from monai_attn.losses.class_balance import ClassBalancedLoss, median_frequency_weights

__all__ = ["CentralLoss", "ClassBalancedLoss", "median_frequency_weights"]
