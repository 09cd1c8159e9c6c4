# SPDX-License-Identifier: Apache-2.0
"""Transforms that MONAI does not have."""

from __future__ import annotations

from monai_attn.transforms.masks import BrainMaskD, BrainMaskd, BrainMaskDict
from monai_attn.transforms.regions import (
    LabelsToRegions,
    LabelsToRegionsD,
    LabelsToRegionsd,
    LabelsToRegionsDict,
    RegionsToLabels,
    RegionsToLabelsD,
    RegionsToLabelsd,
    RegionsToLabelsDict,
)
from monai_attn.transforms.reload import ReloadImageD, ReloadImaged, ReloadImageDict
from monai_attn.transforms.slices import RandSlicesD, RandSlicesd, RandSlicesDict
from monai_attn.transforms.spatial import SafeSpacingD, SafeSpacingd, SafeSpacingDict

__all__ = [
    "BrainMaskD",
    "BrainMaskDict",
    "BrainMaskd",
    "LabelsToRegions",
    "LabelsToRegionsD",
    "LabelsToRegionsDict",
    "LabelsToRegionsd",
    "RandSlicesD",
    "RandSlicesDict",
    "RandSlicesd",
    "RegionsToLabels",
    "RegionsToLabelsD",
    "RegionsToLabelsDict",
    "RegionsToLabelsd",
    "ReloadImageD",
    "ReloadImageDict",
    "ReloadImaged",
    "SafeSpacingD",
    "SafeSpacingDict",
    "SafeSpacingd",
]
