# SPDX-License-Identifier: Apache-2.0
"""Pictures of segmentations, attention maps and trainings.

Every function returns a matplotlib figure, drawn without a display and without global state; :func:`save` writes it.
Class colours are those of Okabe and Ito, maps are drawn in viridis: both can be told apart by colour-blind readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from monai.utils import optional_import

from monai_attn.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Figure, _ = optional_import("matplotlib.figure", name="Figure")
colormaps, _ = optional_import("matplotlib", name="colormaps")
ListedColormap, _ = optional_import("matplotlib.colors", name="ListedColormap")

__all__ = ["attention_grid", "best_slice", "overlay", "save", "training_curves"]

CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
_TERM_COLOURS = tuple(colour for colour in CLASS_COLOURS if colour != CLASS_COLOURS[4])  # that is the whole loss's
_Origin = Literal["upper", "lower"]
_PANEL_INCHES = 2.4
_DPI = 150


def best_slice(label: torch.Tensor, spatial_dim: int) -> int:
    """The index along ``spatial_dim`` of the slice of a label map (1, *spatial) with the most foreground.

    Example:
        >>> best_slice(torch.tensor([[[0, 0], [1, 2], [0, 1]]]), spatial_dim=0)
        1
    """
    others = [axis for axis in range(label.ndim) if axis != spatial_dim + 1]
    return int((label > 0).sum(dim=others).argmax())


def overlay(
    image: torch.Tensor,
    masks: Mapping[str, torch.Tensor],
    *,
    heatmaps: Mapping[str, torch.Tensor] | None = None,
    spatial_dim: int = 2,
    spacing: Sequence[float] | None = None,
    title: str = "",
    class_names: Sequence[str] = (),
) -> Figure:
    """Draw an image beside itself with each mask on it, in the slice with the most foreground.

    Args:
        image: image (C, *spatial), 2D or 3D; the first channel is drawn, or all three of an RGB image.
        masks: title to label map (1, *spatial) of class indices; the first one with foreground decides on the slice.
        heatmaps: title to map (1, *spatial), such as an attention map, drawn in panels after those of the masks.
        spatial_dim: of a volume, the spatial axis to cut across.
        spacing: voxel size in mm for each spatial axis; by default 1.
        title: title of the figure, such as the case's name.
        class_names: names of the classes 1, 2, …, for the legend.

    Returns:
        a figure with one panel for the image, one for each mask and one for each heat map.

    Raises:
        ValueError: if a mask or a heat map has another spatial shape than the image.

    Example:
        ``save(overlay(image, {"truth": label, "prediction": prediction}, title="case_001"), "case_001.png")``
    """
    heatmaps = heatmaps or {}
    for name, layer in {**masks, **heatmaps}.items():
        if layer.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"'{name}' has the spatial shape {tuple(layer.shape[1:])}, the image {tuple(image.shape[1:])}; "
                "put both on one grid first."
            )
    sizes = list(spacing or [1.0] * (image.ndim - 1))
    # the second axis of a 2D image points down, those of a volume in RAS orientation point up
    origin: _Origin = "lower" if image.ndim == 4 else "upper"
    if image.ndim == 4:
        index = next((best_slice(mask, spatial_dim) for mask in masks.values() if (mask > 0).any()), None)
        index = image.shape[spatial_dim + 1] // 2 if index is None else index
        image = image.select(spatial_dim + 1, index)
        masks, heatmaps = (
            {name: layer.select(spatial_dim + 1, index) for name, layer in layers.items()}
            for layers in (masks, heatmaps)
        )
        sizes.pop(spatial_dim)
    aspect = sizes[1] / sizes[0]

    colours = _class_colours(max([len(class_names), 1, *(int(mask.max()) for mask in masks.values())]))
    height_by_width = image.shape[2] * sizes[1] / (image.shape[1] * sizes[0])
    figure, axes = _panels(1 + len(masks) + len(heatmaps), height_by_width, title)
    for axis, name in zip(axes, ["image", *masks, *heatmaps]):
        axis.set_title(name, fontsize=8)
        if name in heatmaps:
            _show_map(axis, heatmaps[name], aspect, origin)
        else:
            _show_image(axis, image, aspect, origin)
        if name in masks:
            _show_mask(axis, masks[name], colours, aspect, origin)
    if class_names:
        handles = [_patch(colour, name) for colour, name in zip(colours, class_names)]
        few = len(class_names) <= len(CLASS_COLOURS)
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=4 if few else 5,
            fontsize=7 if few else 4.5,
            frameon=False,
        )
    return figure


def attention_grid(image: torch.Tensor, maps: Mapping[str, torch.Tensor], *, title: str = "") -> Figure:
    """Draw the attention maps of one 2D image.

    The second axis points up, as in slices of a volume in RAS orientation. A spatial map is drawn over the image's
    extent as the mean over its channels, a channel map (its spatial size is one) as a bar for each channel.

    Args:
        image: the network's input (C, H, W).
        maps: path of the gate to its map (1, C, *size), as :func:`monai_attn.visualize.capture_attention` gives it.
        title: title of the figure.

    Returns:
        a figure with a panel for the image and one for each map.

    Raises:
        ValueError: if a map is not that of a single 2D image.

    Example:
        ``with capture_attention(network) as maps: network(image[None])`` and then ``attention_grid(image, maps)``
    """
    figure, axes = _panels(1 + len(maps), image.shape[2] / image.shape[1], title)
    _show_image(axes[0], image, 1.0, "lower")
    axes[0].set_title("image", fontsize=8)
    for axis, (name, attention) in zip(axes[1:], maps.items()):
        if attention.ndim != 4 or attention.shape[0] != 1:
            raise ValueError(
                f"map '{name}' has shape {tuple(attention.shape)}, expected (1, C, H, W): capture one 2D image."
            )
        if attention.shape[2:].numel() == 1:
            values = np.sort(attention.flatten().cpu().numpy())
            axis.bar(np.arange(len(values)), values, width=1.0, color=CLASS_COLOURS[4])
            axis.set(ylim=(0, 1), xticks=[])
            axis.tick_params(labelsize=6)
        else:
            mean = F.interpolate(attention.mean(dim=1, keepdim=True).float(), size=image.shape[1:], mode="nearest")
            _show_map(axis, mean[0], 1.0, "lower")
        axis.set_title(name.removesuffix(".gate"), fontsize=6)
    return figure


def training_curves(loss: Sequence[tuple[int, float]], metrics: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Draw the training loss and the validation metrics over the iterations.

    Args:
        loss: pairs of iteration and loss.
        metrics: name of the metric to pairs of iteration and value. Names that begin with ``loss_`` are terms of the
            training loss, as of :class:`monai_attn.handlers.LossTerms`.

    Returns:
        a figure with a panel for the loss and its terms and, if there are metrics, one for them.

    Example:
        >>> figure = training_curves([(1, 0.9), (2, 0.5)], {"val_mean_dice": [(2, 0.6)]})
        >>> len(figure.axes)
        2
    """
    terms = {name: values for name, values in metrics.items() if name.startswith("loss_")}
    validation = {name: values for name, values in metrics.items() if name not in terms}
    figure, axes = _panels(2 if validation else 1, 0.7, "")
    axes[0].plot(*zip(*loss), color=CLASS_COLOURS[4], linewidth=0.6, label="total")
    axes[0].set_ylim(bottom=0)
    for colour, (name, values) in zip(_TERM_COLOURS, terms.items()):
        axes[0].plot(*zip(*values), color=colour, linewidth=1.2, label=name.removeprefix("loss_"))
        axes[0].legend(fontsize=6, loc="upper right")
    for colour, (name, values) in zip(CLASS_COLOURS, validation.items()):
        axes[1].plot(*zip(*values), color=colour, marker="o", markersize=3, label=name)
        axes[1].set_ylim(0, 1)
        axes[1].legend(fontsize=7, loc="lower right")
    for axis, name in zip(axes, ["training loss", "validation"]):
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("iteration", fontsize=7)
        axis.tick_params(labelsize=6)
    return figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, with the same bytes each time, and return its path.

    Example:
        ``save(overlay(image, {"prediction": prediction}), "case_001.png")``
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        figure.savefig(draft, dpi=_DPI, format="png", metadata={"Software": None})
    return path


def _panels(count: int, height_by_width: float, title: str) -> tuple[Figure, list[Axes]]:
    columns = min(count, 5)
    rows = -(-count // columns)
    height = _PANEL_INCHES * max(0.5, min(height_by_width, 2.0)) + 0.3
    figure = Figure(figsize=(columns * _PANEL_INCHES, rows * height + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    figure.suptitle(title, fontsize=9, parse_math=False)  # a file may have any name, also one with $ signs
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _class_colours(count: int) -> list[Any]:
    """Okabe and Ito's colours, or as many as there are classes, neighbours in number far apart in colour."""
    if count <= len(CLASS_COLOURS):
        return list(CLASS_COLOURS)
    order = [index for start in range(3) for index in range(start, count, 3)]
    return [colormaps["turbo"]((order.index(index) + 0.5) / count) for index in range(count)]


def _upright(slice_: np.ndarray) -> np.ndarray:
    """Array index (x, y) to picture (row, column)."""
    return np.swapaxes(slice_, 0, 1)


def _show_image(axis: Axes, image: torch.Tensor, aspect: float, origin: _Origin) -> None:
    pixels = torch.as_tensor(image).float().cpu().numpy()
    if pixels.shape[0] == 3:
        shown: dict[str, Any] = {"X": _upright(np.moveaxis(pixels / max(pixels.max(), 1e-6), 0, -1))}
    else:
        low, high = np.percentile(pixels[0], (1, 99))
        shown = {"X": _upright(pixels[0]), "cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}
    axis.imshow(origin=origin, aspect=aspect, **shown)
    axis.set_axis_off()


def _show_mask(axis: Axes, mask: torch.Tensor, colours: Sequence[Any], aspect: float, origin: _Origin) -> None:
    classes = _upright(torch.as_tensor(mask)[0].cpu().numpy().astype(int))
    shown = np.ma.masked_where(classes == 0, classes - 1)
    axis.imshow(
        shown,
        cmap=ListedColormap(colours),
        vmin=-0.5,
        vmax=len(colours) - 0.5,
        alpha=0.55,
        origin=origin,
        aspect=aspect,
        interpolation="none",
    )


def _show_map(axis: Axes, attention: torch.Tensor, aspect: float, origin: _Origin) -> None:
    shown = axis.imshow(
        _upright(torch.as_tensor(attention)[0].cpu().numpy()), cmap="viridis", origin=origin, aspect=aspect
    )
    axis.figure.colorbar(shown, ax=axis, fraction=0.046, location="bottom").ax.tick_params(labelsize=6)
    axis.set_axis_off()


def _patch(colour: str, name: str) -> Any:
    patches, _ = optional_import("matplotlib.patches")
    return patches.Patch(color=colour, label=name)
