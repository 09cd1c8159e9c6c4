# SPDX-License-Identifier: Apache-2.0
"""Metrics that challenges are scored with."""

from __future__ import annotations

from monai_attn.metrics.isic import ISICSegmentationMetric

__all__ = ["ISICSegmentationMetric"]
