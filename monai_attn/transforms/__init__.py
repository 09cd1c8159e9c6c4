# SPDX-License-Identifier: Apache-2.0
"""Transforms for loading, checking, converting and saving images."""

from __future__ import annotations

from monai_attn.transforms.checks import CheckImaged, CheckLabeld, label_values
from monai_attn.transforms.edges import SobelEdges, SobelEdgesd, edge_targets, foreground_masks, sobel_edges
from monai_attn.transforms.grid import RandSlicesd, SafeSpacingd
from monai_attn.transforms.load import ReloadImaged, SafeChannelFirstd, SafeLoadImaged
from monai_attn.transforms.output import SafeSaveImage, SafeSaveImaged, provenance_of
from monai_attn.transforms.regions import (
    AsLabelMapd,
    BrainMaskd,
    InvertArgmaxd,
    LabelsToRegions,
    LabelsToRegionsd,
    RegionsToLabels,
    RegionsToLabelsd,
)

__all__ = [
    "AsLabelMapd", "BrainMaskd", "CheckImaged", "CheckLabeld", "InvertArgmaxd", "LabelsToRegions",
    "LabelsToRegionsd", "RandSlicesd", "RegionsToLabels", "RegionsToLabelsd", "ReloadImaged", "SafeChannelFirstd",
    "SafeLoadImaged", "SafeSaveImage", "SafeSaveImaged", "SafeSpacingd", "SobelEdges", "SobelEdgesd",
    "edge_targets", "foreground_masks", "label_values", "provenance_of", "sobel_edges",
]  # fmt: skip
