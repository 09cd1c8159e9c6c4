# SPDX-License-Identifier: Apache-2.0
"""A segmentation of a volume in three planes, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from monai_attn.visualize.figures.panels import (
    CLASS_COLOURS,
    class_colours,
    legend,
    letter,
    new_figure,
    show_image,
    show_mask,
)
from monai_attn.visualize.figures.view import check_grid, shown_slice, slice_view

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["three_planes"]

_PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
_ERRORS = {"false positive": CLASS_COLOURS[5], "false negative": CLASS_COLOURS[4], "another class": CLASS_COLOURS[3]}
_COLUMN_INCHES = 1.8


def three_planes(
    image: torch.Tensor, masks: Mapping[str, torch.Tensor], *, title: str = "", class_names: Sequence[str] = ()
) -> Figure:
    """Draw axial, coronal and sagittal slices of a volume, each alone, with each mask on it, and with what is wrong.

    The slices are those with the most foreground. They are drawn in radiological convention, with the letters of the
    directions at the borders: the patient's right (R) is on the left, in sagittal slices the front (A) is. A volume
    without metadata is taken for one in RAS orientation of 1 mm, and has no letters.

    Args:
        image: volume (C, *spatial), of any orientation; the first channel is drawn.
        masks: title to label map (1, *spatial) of class indices, on the volume's grid. If one is called ``truth``, a
            last column shows where the last mask differs from it.
        title: title of the figure.
        class_names: names of the classes 1, 2, …, for the legend.

    Returns:
        a figure with a row for each plane, and a column for the image, for each mask and for the difference.

    Raises:
        ValueError: if the image is no volume, or a mask has another spatial shape.

    Example:
        >>> volume, label = torch.rand(1, 8, 9, 10), torch.ones(1, 8, 9, 10)
        >>> len(three_planes(volume, {"truth": label, "prediction": label}).axes)
        12
    """
    if image.ndim != 4:
        raise ValueError(f"image must be a volume (C, *spatial), got shape {tuple(image.shape)}; use overlay.")
    check_grid(image, masks)
    affine = image.affine if isinstance(image, MetaTensor) else None
    image, *placed = (_in_ras(layer, affine) for layer in (image, *masks.values()))
    masks = dict(zip(masks, placed))
    colours = class_colours(max([len(class_names), 1, *(int(mask.max()) for mask in masks.values())]))
    differs = len(masks) > 1 and "truth" in masks
    columns = ["image", *masks, *(["difference"] if differs else [])]

    sides = image.pixdim.tolist() if isinstance(image, MetaTensor) else [1.0] * 3
    lengths = [size * side for size, side in zip(image.shape[1:], sides)]
    width = max(lengths[0], lengths[1])
    heights = [max(0.35, min(lengths[axis] / width, 2.0)) for axis in (1, 2, 2)]
    if isinstance(image, MetaTensor):
        title = f"{title}\nradiological: the patient's right on the left".strip()
    figure = new_figure(_COLUMN_INCHES * len(columns) + 0.2, _COLUMN_INCHES * sum(heights) + 1.1, title)
    rows = figure.subplots(3, len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (plane, axis_cut) in zip(rows, _PLANES.items()):
        index = shown_slice(masks.values(), image.shape[axis_cut + 1], axis_cut)
        view = slice_view(image, axis_cut)
        shown, *cut = (layer.select(axis_cut + 1, index) for layer in (image, *masks.values()))
        layers = dict(zip(masks, cut))
        for axis, name in zip(axes, columns):
            show_image(axis, shown, view)
            if name in layers:
                show_mask(axis, layers[name], colours, view)
            elif name == "difference":
                show_mask(axis, _difference(layers["truth"], cut[-1]), list(_ERRORS.values()), view, alpha=0.9)
            axis.set_title(f"{name}, {plane}" if name == "image" else name, fontsize=7)
        letter(axes[0], view)
    legend(figure, {**dict(zip(class_names, colours)), **(_ERRORS if differs else {})})
    return figure


def _in_ras(layer: torch.Tensor, affine: torch.Tensor | None) -> torch.Tensor:
    if affine is None:
        return layer
    plain = layer.as_tensor() if isinstance(layer, MetaTensor) else layer
    return Orientation(axcodes="RAS", labels=None)(MetaTensor(plain, affine=affine))


def _difference(truth: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """1 where the prediction alone has a structure, 2 where the truth alone has, 3 where they have different ones."""
    wrong = truth != prediction
    return wrong * (1 + (prediction == 0).int() + 2 * ((prediction > 0) & (truth > 0)).int())
