# SPDX-License-Identifier: Apache-2.0
"""Pictures of segmentations, attention maps, scores and trainings.

Every function returns a matplotlib figure, drawn without a display and without global state; :func:`save` writes it.
Class colours are those of Okabe and Ito, maps are drawn in viridis: both can be told apart by colour-blind readers.
Slices of volumes whose metadata tell their orientation are drawn in radiological convention, with letters at the
borders: the patient's right, in sagittal slices the front, is on the left.
"""

from __future__ import annotations

from monai_attn.visualize.figures.attention import attention_grid, edge_overlay, excitation_by_epoch, scale_maps
from monai_attn.visualize.figures.overlay import overlay
from monai_attn.visualize.figures.panels import CLASS_COLOURS, pixels, save
from monai_attn.visualize.figures.planes import three_planes
from monai_attn.visualize.figures.region import Region, improved_region
from monai_attn.visualize.figures.scores import structure_boxplot
from monai_attn.visualize.figures.training import training_curves
from monai_attn.visualize.figures.view import View, best_slice, slice_view

__all__ = [
    "CLASS_COLOURS",
    "Region",
    "View",
    "attention_grid",
    "best_slice",
    "edge_overlay",
    "excitation_by_epoch",
    "improved_region",
    "overlay",
    "pixels",
    "save",
    "scale_maps",
    "slice_view",
    "structure_boxplot",
    "three_planes",
    "training_curves",
]
