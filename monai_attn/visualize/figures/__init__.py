# SPDX-License-Identifier: Apache-2.0
"""Draw segmentations, attention maps and training curves.

Every function returns a matplotlib figure, drawn without a display and without global state; :func:`save` writes it.
Class colors are those of Okabe and Ito, maps are drawn in viridis: both suit color-blind readers. Slices of volumes
with metadata are drawn in radiological convention: the patient's right, in sagittal slices the front, is on the left.
"""

from __future__ import annotations

from monai_attn.visualize.figures.overlay import attention_grid, overlay, three_planes
from monai_attn.visualize.figures.panels import CLASS_COLORS, View, best_slice, save, slice_view
from monai_attn.visualize.figures.training import excitation_by_epoch, training_curves

__all__ = [
    "CLASS_COLORS", "View", "attention_grid", "best_slice", "excitation_by_epoch", "overlay", "save", "slice_view",
    "three_planes", "training_curves",
]  # fmt: skip
