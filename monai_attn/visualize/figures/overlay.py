# SPDX-License-Identifier: Apache-2.0
"""Draw images with segmentations and attention maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor

from monai_attn.visualize.figures import panels
from monai_attn.visualize.figures.panels import CLASS_COLORS, View, cut, to_ras
from monai_attn.visualize.maps import gate_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attention_grid", "overlay", "three_planes"]

_PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
_ERRORS = {"false positive": CLASS_COLORS[5], "false negative": CLASS_COLORS[4], "another class": CLASS_COLORS[3]}
_COLUMN_INCHES = 1.8


def overlay(
    image: torch.Tensor,
    masks: Mapping[str, torch.Tensor],
    *,
    heatmaps: Mapping[str, torch.Tensor] | None = None,
    spatial_dim: int = 2,
    title: str = "",
    class_names: Sequence[str] = (),
) -> Figure:
    """Draw an image beside overlays of masks and heat maps.

    Of a volume it is the slice with the most foreground of the first mask that has any.

    Args:
        image: image (C, *spatial), 2D or 3D, gray (the first channel) or RGB, with or without metadata.
        masks: title to label map (1, *spatial) of class indices.
        heatmaps: title to map (1, *spatial), such as an attention map; all have one scale of colors, from 0 to 1 or to
            the largest value.
        spatial_dim: slicing axis for volumes: 0 sagittal, 1 coronal, 2 axial.
        title: title of the figure.
        class_names: names of the classes 1, 2, …, for the legend.

    Raises:
        ValueError: if a mask or a heat map has another spatial shape than the image.

    Example:
        ``save(overlay(image, {"truth": label, "prediction": prediction}, title="case_001"), "case_001.png")``
    """
    heatmaps = heatmaps or {}
    image, layers = to_ras(image, {**masks, **heatmaps})
    image, layers, view = cut(image, layers, spatial_dim, by=masks)
    colors = _colors(masks, class_names)
    figure, axes = panels.grid(1 + len(layers), image.shape[2] * view.aspect / image.shape[1], title)
    most = max([1.0, *(float(layers[name].max()) for name in heatmaps)])
    for axis, name in zip(axes, ["image", *layers]):
        axis.set_title(name, fontsize=8 if len(name) < 28 else 6)
        if name in heatmaps:
            shown = panels.show_map(axis, layers[name], view, vmin=0, vmax=most)
        else:
            panels.show_image(axis, image, view)
        if name in masks:
            panels.show_mask(axis, layers[name], colors, view)
    if heatmaps:
        panels.color_bar(axes, shown)
    panels.show_letters(axes[0], view)  # all panels show the same slice
    panels.legend(figure, dict(zip(class_names, colors)))
    return figure


def three_planes(
    image: torch.Tensor, masks: Mapping[str, torch.Tensor], *, title: str = "", class_names: Sequence[str] = ()
) -> Figure:
    """Draw axial, coronal and sagittal slices with masks and errors.

    The slices with the most foreground are drawn in radiological convention, with letters at the borders. A volume
    without metadata is taken for one in RAS orientation of 1 mm, and has no letters.

    Args:
        image: volume (C, *spatial), of any orientation, gray (the first channel) or RGB.
        masks: title to label map (1, *spatial) of class indices. If one is called ``truth``, a last column shows where
            the last mask differs from it.
        title: title of the figure.
        class_names: names of the classes 1, 2, …, for the legend.

    Raises:
        ValueError: if the image is no volume, or a mask has another spatial shape.

    Example:
        >>> volume, label = torch.rand(1, 8, 9, 10), torch.ones(1, 8, 9, 10)
        >>> len(three_planes(volume, {"truth": label, "prediction": label}).axes)
        12
    """
    if image.ndim != 4:
        raise ValueError(f"image must be a volume (C, *spatial), got shape {tuple(image.shape)}; use overlay.")
    colors = _colors(masks, class_names)
    errors = _ERRORS if len(masks) > 1 and "truth" in masks else {}
    image, layers = to_ras(image, masks)
    columns = ["image", *masks, *(["difference"] if errors else [])]

    sides = image.pixdim.tolist() if isinstance(image, MetaTensor) else [1.0] * 3
    lengths = [size * side for size, side in zip(image.shape[1:], sides)]
    heights = [max(0.35, min(lengths[axis] / max(lengths[:2]), 2.0)) for axis in (1, 2, 2)]
    if isinstance(image, MetaTensor):
        title = f"{title}\nradiological: the patient's right on the left".strip()
    figure = panels.new_figure(_COLUMN_INCHES * len(columns) + 0.2, _COLUMN_INCHES * sum(heights) + 1.1, title)
    rows = figure.subplots(3, len(columns), squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (plane, spatial_dim) in zip(rows, _PLANES.items()):
        shown, drawn, view = cut(image, layers, spatial_dim, by=masks)
        for axis, name in zip(axes, columns):
            panels.show_image(axis, shown, view)
            if name in drawn:
                panels.show_mask(axis, drawn[name], colors, view)
            elif name == "difference":
                wrong = _difference(drawn["truth"], drawn[columns[-2]])
                panels.show_mask(axis, wrong, list(errors.values()), view, alpha=0.9)
            axis.set_title(f"{name}, {plane}" if name == "image" else name, fontsize=7)
        panels.show_letters(axes[0], view)
    panels.legend(figure, {**dict(zip(class_names, colors)), **errors})
    return figure


def attention_grid(
    image: torch.Tensor, maps: Mapping[str, torch.Tensor], *, title: str = "", view: View | None = None
) -> Figure:
    """Draw the attention maps of one 2D image.

    A spatial map is drawn as the mean over its channels, a channel map (of spatial size one) as a bar per channel,
    sorted. All maps have one scale of colors, from 0 to 1.

    Args:
        image: the network's input (C, H, W).
        maps: gate to map (1, C, *size), from :func:`monai_attn.visualize.capture_attention`.
        title: title of the figure.
        view: orientation; for a slice of a volume see :func:`slice_view`.

    Raises:
        ValueError: if a map is not that of a single 2D image.

    Example:
        ``with capture_attention(network) as maps: network(image[None])`` and then ``attention_grid(image, maps)``
    """
    view = view or View()
    figure, axes = panels.grid(1 + len(maps), image.shape[2] * view.aspect / image.shape[1], title)
    panels.show_image(axes[0], image, view)
    panels.show_letters(axes[0], view)
    axes[0].set_title("image", fontsize=8)
    shown = None
    for axis, (name, attention) in zip(axes[1:], maps.items()):
        if attention.ndim != 4 or attention.shape[0] != 1:
            raise ValueError(f"map '{name}' is {tuple(attention.shape)}, not (1, C, H, W): capture one 2D image.")
        if attention.shape[2:].numel() == 1:
            values = np.sort(attention.flatten().cpu().numpy())
            axis.bar(np.arange(len(values)), values, width=1.0, color=CLASS_COLORS[4])
            axis.set(ylim=(0, 1), xticks=[])
            axis.tick_params(labelsize=6)
        else:
            mean = F.interpolate(attention.mean(dim=1, keepdim=True).float(), size=image.shape[1:], mode="nearest")
            shown = panels.show_map(axis, mean[0], view, vmin=0, vmax=1)
        axis.set_title(gate_title(name), fontsize=8)
    if shown is not None:
        panels.color_bar(axes, shown)
    return figure


def _colors(masks: Mapping[str, torch.Tensor], class_names: Sequence[str]) -> list[Any]:
    return panels.class_colors(max([len(class_names), 1, *(int(mask.max()) for mask in masks.values())]))


def _difference(truth: torch.Tensor, prediction: torch.Tensor) -> torch.Tensor:
    """Mark false positives (1), false negatives (2), other errors (3)."""
    wrong = truth != prediction
    return wrong * (1 + (prediction == 0).int() + 2 * ((prediction > 0) & (truth > 0)).int())
