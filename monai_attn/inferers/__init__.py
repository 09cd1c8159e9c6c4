# SPDX-License-Identifier: Apache-2.0
"""Inferers for networks that see less, or other dimensions, than the volume."""

from __future__ import annotations

from monai_attn.inferers.layerwise import HaloInferer, LayerwiseInferer
from monai_attn.inferers.slices import SliceBatchInferer
from monai_attn.inferers.steps import LayerStep

__all__ = ["HaloInferer", "LayerStep", "LayerwiseInferer", "SliceBatchInferer"]
