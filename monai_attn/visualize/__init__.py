# SPDX-License-Identifier: Apache-2.0
"""Capture attention maps and draw segmentations."""

from __future__ import annotations

from monai_attn.visualize import figures
from monai_attn.visualize.maps import GateMaps, capture_attention, gate_title

__all__ = ["GateMaps", "capture_attention", "figures", "gate_title"]
