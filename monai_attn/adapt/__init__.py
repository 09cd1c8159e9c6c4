# SPDX-License-Identifier: Apache-2.0
"""Attention for existing networks."""

from __future__ import annotations

from monai_attn.adapt.autofocus import autofocus
from monai_attn.adapt.features import FeatureExtractor, features_of
from monai_attn.adapt.places import Places, places_of
from monai_attn.adapt.recalibrate import recalibrate

__all__ = ["FeatureExtractor", "Places", "autofocus", "features_of", "places_of", "recalibrate"]
