# SPDX-License-Identifier: Apache-2.0
"""Handlers for MONAI's and ignite's engines."""

from __future__ import annotations

from monai_attn.handlers.loss_terms import LossTerms
from monai_attn.handlers.metrics import CaseMetricsSaver
from monai_attn.handlers.pictures import CurveSaver, OverlaySaver
from monai_attn.handlers.progress import EpochProgressBar, training_loss
from monai_attn.handlers.validation import EarlyStop, ValidationLoss

__all__ = [
    "CaseMetricsSaver",
    "CurveSaver",
    "EarlyStop",
    "EpochProgressBar",
    "LossTerms",
    "OverlaySaver",
    "ValidationLoss",
    "training_loss",
]
