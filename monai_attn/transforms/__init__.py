# SPDX-License-Identifier: Apache-2.0
"""Transforms that MONAI does not have."""

from __future__ import annotations

from monai_attn.transforms.slices import RandSlicesd, RandSlicesD, RandSlicesDict
from monai_attn.transforms.spatial import SafeSpacingd, SafeSpacingD, SafeSpacingDict

__all__ = ["RandSlicesD", "RandSlicesDict", "RandSlicesd", "SafeSpacingD", "SafeSpacingDict", "SafeSpacingd"]
