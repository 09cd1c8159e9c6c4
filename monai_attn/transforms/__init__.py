# SPDX-License-Identifier: Apache-2.0
"""Transforms that MONAI does not have."""

from __future__ import annotations

from monai_attn.transforms.argmax import InvertArgmaxD, InvertArgmaxd, InvertArgmaxDict
from monai_attn.transforms.checks import (
    CheckPair,
    CheckPairD,
    CheckPaird,
    CheckPairDict,
    CheckVolume,
    CheckVolumeD,
    CheckVolumed,
    CheckVolumeDict,
)
from monai_attn.transforms.edges import (
    SobelEdges,
    SobelEdgesD,
    SobelEdgesd,
    SobelEdgesDict,
    edge_targets,
    foreground_masks,
)
from monai_attn.transforms.label_checks import CheckLabel, CheckLabelD, CheckLabeld, CheckLabelDict, label_values
from monai_attn.transforms.label_map import AsLabelMapD, AsLabelMapd, AsLabelMapDict
from monai_attn.transforms.load import SafeLoadImageD, SafeLoadImaged, SafeLoadImageDict
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
from monai_attn.transforms.save import SafeSaveImage, SafeSaveImageD, SafeSaveImaged, SafeSaveImageDict, origin_of
from monai_attn.transforms.slices import RandSlicesD, RandSlicesd, RandSlicesDict
from monai_attn.transforms.sobel import sobel_edges
from monai_attn.transforms.spatial import SafeSpacingD, SafeSpacingd, SafeSpacingDict

__all__ = [
    "AsLabelMapD",
    "AsLabelMapDict",
    "AsLabelMapd",
    "BrainMaskD",
    "BrainMaskDict",
    "BrainMaskd",
    "CheckLabel",
    "CheckLabelD",
    "CheckLabelDict",
    "CheckLabeld",
    "CheckPair",
    "CheckPairD",
    "CheckPairDict",
    "CheckPaird",
    "CheckVolume",
    "CheckVolumeD",
    "CheckVolumeDict",
    "CheckVolumed",
    "InvertArgmaxD",
    "InvertArgmaxDict",
    "InvertArgmaxd",
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
    "SafeLoadImageD",
    "SafeLoadImageDict",
    "SafeLoadImaged",
    "SafeSaveImage",
    "SafeSaveImageD",
    "SafeSaveImageDict",
    "SafeSaveImaged",
    "SafeSpacingD",
    "SafeSpacingDict",
    "SafeSpacingd",
    "SobelEdges",
    "SobelEdgesD",
    "SobelEdgesDict",
    "SobelEdgesd",
    "edge_targets",
    "foreground_masks",
    "label_values",
    "origin_of",
    "sobel_edges",
]
