# SPDX-License-Identifier: Apache-2.0
"""What a network attends to: all maps of an image, scales, edges, and the course of a training."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from monai.utils import optional_import

from monai_attn.visualize.figures.panels import (
    CLASS_COLOURS,
    PANEL_INCHES,
    colour_bar,
    letter,
    new_figure,
    panels,
    show_image,
    show_map,
    show_mask,
)
from monai_attn.visualize.figures.view import View, check_grid, shown_slice, slice_view

if TYPE_CHECKING:
    from matplotlib.figure import Figure
BoundaryNorm, _ = optional_import("matplotlib.colors", name="BoundaryNorm")
colormaps, _ = optional_import("matplotlib", name="colormaps")

__all__ = ["attention_grid", "edge_overlay", "excitation_by_epoch", "scale_maps"]

_EPOCH = re.compile(r"epoch_(\d+)\.npz$")
_MOST_EPOCHS = 7  # of Fig. 7 of the scSE paper


def attention_grid(
    image: torch.Tensor, maps: Mapping[str, torch.Tensor], *, title: str = "", view: View | None = None
) -> Figure:
    """Draw the attention maps of one 2D image.

    A spatial map is drawn over the image's extent as the mean over its channels, a channel map (its spatial size is
    one) as a bar for each channel, the bars in rising order.

    Args:
        image: the network's input (C, H, W).
        maps: path of the gate to its map (1, C, *size), as :func:`monai_attn.visualize.capture_attention` gives it.
        title: title of the figure.
        view: which way up; by default as a picture. For a slice of a volume see :func:`slice_view`.

    Returns:
        a figure with a panel for the image and one for each map.

    Raises:
        ValueError: if a map is not that of a single 2D image.

    Example:
        ``with capture_attention(network) as maps: network(image[None])`` and then ``attention_grid(image, maps)``
    """
    view = view or View()
    figure, axes = panels(1 + len(maps), image.shape[2] * view.aspect / image.shape[1], title)
    show_image(axes[0], image, view)
    letter(axes[0], view)
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
            colour_bar(axis, show_map(axis, mean[0], view))
        axis.set_title(name.removesuffix(".gate"), fontsize=6)
    return figure


def scale_maps(
    image: torch.Tensor,
    weights: Mapping[str, torch.Tensor],
    scales: Mapping[str, Sequence[float]],
    *,
    index: int | None = None,
    spatial_dim: int = 2,
    title: str = "",
) -> Figure:
    """Draw what the autofocus layers of a network chose (Fig. 4 of Qin 2018).

    Args:
        image: image (C, *spatial), 2D or 3D.
        weights: name of a layer to the weights of its scales (K, *spatial), which sum to one at each voxel.
        scales: name of a layer to its K scales in mm: how far the kernel reaches from its centre, which is dilation
            times voxel size.
        index: of a volume, the slice to show; by default the middle one.
        spatial_dim: of a volume, the spatial axis to cut across.
        title: title of the figure.

    Returns:
        a figure with a row for each layer: the weight of each scale, and the scale of the largest weight in mm.

    Raises:
        ValueError: if weights lie on another grid than the image, or a layer has more or fewer scales than weights.

    Example:
        >>> figure = scale_maps(torch.rand(1, 8, 8), {"focus": torch.rand(2, 8, 8)}, {"focus": (2, 6)})
        >>> [axis.get_title() for axis in figure.axes[:4]]
        ['image', 'focus: 2 mm', '6 mm', 'largest weight']
    """
    check_grid(image, weights)
    for name, layer in weights.items():
        if len(layer) != len(scales[name]):
            raise ValueError(f"layer '{name}' has {len(layer)} weights at each voxel, and the scales {scales[name]}.")
    view = slice_view(image, spatial_dim)
    if image.ndim == 4:
        index = image.shape[spatial_dim + 1] // 2 if index is None else index
        image = image.select(spatial_dim + 1, index)
        weights = {name: layer.select(spatial_dim + 1, index) for name, layer in weights.items()}
    every = sorted({scale for name in weights for scale in scales[name]})
    norm = BoundaryNorm(np.arange(len(every) + 1) - 0.5, len(every))
    colours = colormaps["cividis"].resampled(len(every))
    columns = 2 + max(map(len, weights.values()))
    height = PANEL_INCHES * image.shape[2] * view.aspect / image.shape[1] + 0.45
    figure = new_figure(PANEL_INCHES * columns, height * len(weights) + 0.5, title)
    for axes, (name, layer) in zip(figure.subplots(len(weights), columns, squeeze=False), weights.items()):
        layer = torch.as_tensor(layer).cpu()
        titles = [f"{scale:g} mm" for scale in scales[name]]
        show_image(axes[0], image, view)
        letter(axes[0], view)
        axes[0].set_title("image", fontsize=7)
        for number, text in enumerate(titles):
            colour_bar(axes[1 + number], show_map(axes[1 + number], layer[number : number + 1], view))
            axes[1 + number].set_title(text if number else f"{name}: {text}", fontsize=7)
        for unused in axes[1 + len(titles) : -1]:
            unused.remove()
        chosen = torch.tensor([every.index(scale) for scale in scales[name]])[layer.argmax(dim=0, keepdim=True)]
        bar = colour_bar(axes[-1], show_map(axes[-1], chosen, view, cmap=colours, norm=norm))
        bar.set_ticks(range(len(every)), labels=[f"{scale:g}" for scale in every])
        bar.set_label("mm", fontsize=6)
        axes[-1].set_title("largest weight", fontsize=7)
    return figure


def edge_overlay(
    image: torch.Tensor,
    maps: Mapping[str, torch.Tensor],
    edges: torch.Tensor,
    target: torch.Tensor | None = None,
    *,
    spatial_dim: int = 2,
    title: str = "",
) -> Figure:
    """Draw where an EG-CNN looks for edges and where it finds them (Figs. 2 and 3 of Hatamizadeh 2020).

    Args:
        image: image (C, *spatial), 2D or 3D.
        maps: title to map (1, *spatial) of a gate, the paper's alpha of each resolution.
        edges: probability of an edge (1, *spatial).
        target: what they should be (1, *spatial), as :class:`monai_attn.transforms.SobelEdges` makes it of the manual
            segmentation; the slice with most of it is shown, else the middle one.
        spatial_dim: of a volume, the spatial axis to cut across.
        title: title of the figure.

    Returns:
        a figure with the image, the maps, the predicted edges, the target, and where both are above 0.5 on the image.

    Raises:
        ValueError: if something lies on another grid than the image.

    Example:
        ``edge_overlay(image[0], {"1st gate": alpha[0]}, network.edges(image)[0], SobelEdges(num_classes=3)(label))``
    """
    layers = {**maps, "predicted edges": edges, **({} if target is None else {"target (Sobel)": target})}
    check_grid(image, layers)
    view = slice_view(image, spatial_dim)
    if image.ndim == 4:
        index = shown_slice([] if target is None else [target], image.shape[spatial_dim + 1], spatial_dim)
        image, *cut = (layer.select(spatial_dim + 1, index) for layer in (image, *layers.values()))
        layers = dict(zip(layers, cut))
    figure, axes = panels(len(layers) + 2, image.shape[2] * view.aspect / image.shape[1], title, columns=4)
    for axis in (axes[0], axes[-1]):
        show_image(axis, image, view)
    letter(axes[0], view)
    axes[0].set_title("image", fontsize=8)
    for axis, (name, layer) in zip(axes[1:], layers.items()):
        colour_bar(axis, show_map(axis, layer, view))
        axis.set_title(name, fontsize=8)
    found = (layers["predicted edges"] > 0.5).int()
    wanted = (layers["target (Sobel)"] > 0.5).int() if target is not None else torch.zeros_like(found)
    show_mask(axes[-1], found + 2 * wanted, [CLASS_COLOURS[0], CLASS_COLOURS[4], CLASS_COLOURS[2]], view, alpha=0.7)
    axes[-1].set_title(
        "predicted (orange), target (blue), both (green)" if target is not None else "predicted", fontsize=6
    )
    return figure


def excitation_by_epoch(
    folder: str | Path, *, gates: Sequence[str] = (), case: str | None = None, title: str = ""
) -> Figure:
    """Draw how attention comes about in a training, over the slice that it belongs to (Fig. 7 of the scSE paper).

    Args:
        folder: where :class:`monai_attn.handlers.AttentionMapHandler` saved its files.
        gates: the gates to draw, a row each; by default the first and the last.
        case: the case to draw; by default the first.
        title: title of the figure.

    Returns:
        a figure with the image and the maps of at most 7 epochs, from the first to the last.

    Raises:
        FileNotFoundError: if the folder has no such files.
        ValueError: if they lack a gate or the case.

    Example:
        ``save(excitation_by_epoch("out/attention"), "fig7.png")``
    """
    files = {int(number[1]): path for path in Path(folder).glob("*.npz") if (number := _EPOCH.match(path.name))}
    if not files:
        raise FileNotFoundError(f"{folder} has no files epoch_<number>.npz; AttentionMapHandler writes them.")
    every = sorted(files)
    epochs = [every[round(i)] for i in np.linspace(0, len(every) - 1, min(len(every), _MOST_EPOCHS))]
    arrays = [dict(np.load(files[epoch])) for epoch in epochs]
    names = {kind: [key.split("/") for key in arrays[0] if key.startswith(f"{kind}/")] for kind in ("image", "map")}
    case = case or names["image"][0][1]
    found = [gate for _, of, gate in names["map"] if of == case]
    rows = list(gates) or list(dict.fromkeys([found[0], found[-1]] if found else []))
    if not rows or not set(rows) <= set(found):
        raise ValueError(f"{folder} has of case '{case}' the gates {found}, not {rows}; give one of these.")
    image, view = torch.tensor(arrays[0][f"image/{case}"]).float(), _view(arrays[0][f"view/{case}"])
    height = PANEL_INCHES * 0.75 * image.shape[2] * view.aspect / image.shape[1] + 0.25
    figure = new_figure(PANEL_INCHES * 0.75 * (1 + len(epochs)) + 0.6, height * len(rows) + 0.4, title or case)
    axes = figure.subplots(len(rows), 1 + len(epochs), squeeze=False)
    for row, gate in zip(axes, rows):
        for axis in row:
            show_image(axis, image, view)
        letter(row[0], view)
        row[0].set_title(gate, fontsize=7)
        for axis, epoch, saved in zip(row[1:], epochs, arrays):
            attention = torch.tensor(saved[f"map/{case}/{gate}"]).float()
            shown = show_map(axis, attention, view, alpha=0.7, vmin=0, vmax=1)
            axis.set_title(f"epoch {epoch}", fontsize=7)
    bar = figure.colorbar(shown, ax=axes, fraction=0.02, aspect=30)
    bar.ax.tick_params(labelsize=6)
    return figure


def _view(text: np.ndarray) -> View:
    aspect, right, up, letters = json.loads(str(text))
    return View(aspect, right, up, tuple(letters) if letters else None)
