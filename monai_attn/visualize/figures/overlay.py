# SPDX-License-Identifier: Apache-2.0
"""An image with segmentations and maps on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from monai.utils import optional_import

from monai_attn.visualize.figures.panels import (
    class_colours,
    colour_bar,
    legend,
    letter,
    panels,
    show_image,
    show_map,
    show_mask,
)
from monai_attn.visualize.figures.region import Region
from monai_attn.visualize.figures.view import check_grid, shown_slice, slice_view

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
Rectangle, _ = optional_import("matplotlib.patches", name="Rectangle")

__all__ = ["overlay"]


def overlay(
    image: torch.Tensor,
    masks: Mapping[str, torch.Tensor],
    *,
    heatmaps: Mapping[str, torch.Tensor] | None = None,
    spatial_dim: int = 2,
    spacing: Sequence[float] | None = None,
    title: str = "",
    class_names: Sequence[str] = (),
    box: Region | None = None,
) -> Figure:
    """Draw an image beside itself with each mask on it, in the slice with the most foreground.

    Args:
        image: image (C, *spatial), 2D or 3D; the first channel is drawn, or all three of an RGB image.
        masks: title to label map (1, *spatial) of class indices; the first one with foreground decides on the slice.
        heatmaps: title to map (1, *spatial), such as an attention map, drawn in panels after those of the masks.
        spatial_dim: of a volume, the spatial axis to cut across.
        spacing: voxel size in mm for each spatial axis; by default what the image's metadata tell, or 1.
        title: title of the figure, such as the case's name.
        class_names: names of the classes 1, 2, …, for the legend.
        box: a box to draw round a part of every mask, such as :func:`improved_region` finds; the slice goes through it.

    Returns:
        a figure with one panel for the image, one for each mask and one for each heat map.

    Raises:
        ValueError: if a mask or a heat map has another spatial shape than the image.

    Example:
        ``save(overlay(image, {"truth": label, "prediction": prediction}, title="case_001"), "case_001.png")``
    """
    heatmaps = heatmaps or {}
    check_grid(image, {**masks, **heatmaps})
    view = slice_view(image, spatial_dim, spacing)
    colours = class_colours(max([len(class_names), 1, *(int(mask.max()) for mask in masks.values())]))
    if image.ndim == 4:
        index = shown_slice(masks.values(), image.shape[spatial_dim + 1], spatial_dim)
        if box is not None:
            index = box.start[spatial_dim] + box.size[spatial_dim] // 2
            box = Region(*(side[:spatial_dim] + side[spatial_dim + 1 :] for side in box))
        image = image.select(spatial_dim + 1, index)
        masks, heatmaps = (
            {name: layer.select(spatial_dim + 1, index) for name, layer in layers.items()}
            for layers in (masks, heatmaps)
        )

    height_by_width = image.shape[2] * view.aspect / image.shape[1]
    figure, axes = panels(1 + len(masks) + len(heatmaps), height_by_width, title)
    for axis, name in zip(axes, ["image", *masks, *heatmaps]):
        axis.set_title(name, fontsize=8 if len(name) < 28 else 6)
        if name in heatmaps:
            colour_bar(axis, show_map(axis, heatmaps[name], view))
        else:
            show_image(axis, image, view)
        if name in masks:
            show_mask(axis, masks[name], colours, view)
            _draw_box(axis, box)
    letter(axes[0], view)  # all panels show the same slice
    legend(figure, dict(zip(class_names, colours)))
    return figure


def _draw_box(axis: Axes, box: Region | None) -> None:
    if box is not None:
        corner = [place - 0.5 for place in box.start]
        axis.add_patch(Rectangle(corner, *box.size, fill=False, edgecolor="white", linewidth=1.2))
