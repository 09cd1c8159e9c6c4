# SPDX-License-Identifier: Apache-2.0
"""Handlers for MONAI's and ignite's engines."""

from __future__ import annotations

from monai_attn.handlers.attention import AttentionMapHandler
from monai_attn.handlers.attention_maps import AttentionMaps
from monai_attn.handlers.checkpoint import BestModelSaver, SafeCheckpointLoader
from monai_attn.handlers.finite import StopOnNonFinite
from monai_attn.handlers.loss_terms import LossTerms
from monai_attn.handlers.metrics import CaseMetricsSaver, ISICSegmentation, MeanDiceOrNaN
from monai_attn.handlers.pictures import CasePictures, CurveSaver, OverlaySaver
from monai_attn.handlers.progress import EpochProgressBar, training_loss
from monai_attn.handlers.resume import TrainingCheckpoint
from monai_attn.handlers.seed import EpochSeed
from monai_attn.handlers.statistics import AverageStatistics
from monai_attn.handlers.surface import SpacedHausdorffDistance, SpacedSurfaceDistance
from monai_attn.handlers.tensorboard import TensorBoardStats
from monai_attn.handlers.validation import EarlyStop, ValidationLoss, validation_loss

__all__ = [
    "AttentionMapHandler",
    "AttentionMaps",
    "AverageStatistics",
    "BestModelSaver",
    "CaseMetricsSaver",
    "CasePictures",
    "CurveSaver",
    "EarlyStop",
    "EpochProgressBar",
    "EpochSeed",
    "ISICSegmentation",
    "LossTerms",
    "MeanDiceOrNaN",
    "OverlaySaver",
    "SafeCheckpointLoader",
    "SpacedHausdorffDistance",
    "SpacedSurfaceDistance",
    "StopOnNonFinite",
    "TensorBoardStats",
    "TrainingCheckpoint",
    "ValidationLoss",
    "training_loss",
    "validation_loss",
]
