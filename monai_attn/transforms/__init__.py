# SPDX-License-Identifier: Apache-2.0
"""Transforms that MONAI does not have."""

from __future__ import annotations

from monai_attn.transforms.label_map import AsLabelMapD, AsLabelMapDict, AsLabelMapd
from monai_attn.transforms.masks import BrainMaskD, BrainMaskDict, BrainMaskd
from monai_attn.transforms.regions import LabelsToRegions, LabelsToRegionsD, LabelsToRegionsDict, LabelsToRegionsd, RegionsToLabels, RegionsToLabelsD, RegionsToLabelsDict, RegionsToLabelsd, SobelEdgesD, SobelEdgesDict, SobelEdgesd, edge_targets, foreground_masks, from monai_attn.transforms.edges import (     SobelEdges
from monai_attn.transforms.reload import ReloadImageD, ReloadImageDict, ReloadImaged
from monai_attn.transforms.slices import RandSlicesD, RandSlicesDict, RandSlicesd
from monai_attn.transforms.sobel import sobel_edges
from monai_attn.transforms.spatial import SafeSpacingD, SafeSpacingDict, SafeSpacingd

__all__ = ["AsLabelMapD", "AsLabelMapDict", "AsLabelMapd", "BrainMaskD", "BrainMaskDict", "BrainMaskd", "LabelsToRegions", "LabelsToRegionsD", "LabelsToRegionsDict", "LabelsToRegionsd", "RandSlicesD", "RandSlicesDict", "RandSlicesd", "RegionsToLabels", "RegionsToLabelsD", "RegionsToLabelsDict", "RegionsToLabelsd", "ReloadImageD", "ReloadImageDict", "ReloadImaged", "SafeSpacingD", "SafeSpacingDict", "SafeSpacingd", "SobelEdgesD", "SobelEdgesDict", "SobelEdgesd", "edge_targets", "foreground_masks", "from monai_attn.transforms.edges import (     SobelEdges", "sobel_edges"]
