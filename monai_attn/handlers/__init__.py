# SPDX-License-Identifier: Apache-2.0
"""Handlers for MONAI's and ignite's engines."""

from __future__ import annotations

from monai_attn.handlers.attention import AttentionMapHandler, AttentionMaps
from monai_attn.handlers.checkpoint import AtomicSaver, BestModelSaver, SafeCheckpointLoader, keep_state
from monai_attn.handlers.evaluation import EarlyStop, SkipFailedCases, ValidationLoss, validation_loss
from monai_attn.handlers.metrics import (
    CaseMetricsSaver,
    ISICSegmentation,
    MeanDiceOrNaN,
    SpacedHausdorffDistance,
    SpacedSurfaceDistance,
)
from monai_attn.handlers.pictures import CasePictures, CurveSaver, OverlaySaver
from monai_attn.handlers.resume import TrainingCheckpoint
from monai_attn.handlers.training import AverageStatistics, EpochProgressBar, EpochSeed, LossTerms, StopOnNonFinite

__all__ = [
    "AtomicSaver", "AttentionMapHandler", "AttentionMaps", "AverageStatistics", "BestModelSaver",
    "CaseMetricsSaver", "CasePictures", "CurveSaver", "EarlyStop", "EpochProgressBar", "EpochSeed",
    "ISICSegmentation", "LossTerms", "MeanDiceOrNaN", "OverlaySaver", "SafeCheckpointLoader", "SkipFailedCases",
    "SpacedHausdorffDistance", "SpacedSurfaceDistance", "StopOnNonFinite", "TrainingCheckpoint", "ValidationLoss",
    "keep_state", "validation_loss",
]  # fmt: skip
