# SPDX-License-Identifier: Apache-2.0
"""What all figures are made of: panels, colours, an image, a mask or a map in a panel, and the file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.utils import optional_import

from monai_attn.files import atomic_write
from monai_attn.visualize.figures.view import View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Figure, _ = optional_import("matplotlib.figure", name="Figure")
FigureCanvasAgg, _ = optional_import("matplotlib.backends.backend_agg", name="FigureCanvasAgg")
Image, _ = optional_import("PIL.Image")
ListedColormap, _ = optional_import("matplotlib.colors", name="ListedColormap")
Patch, _ = optional_import("matplotlib.patches", name="Patch")
colormaps, _ = optional_import("matplotlib", name="colormaps")
patheffects, _ = optional_import("matplotlib.patheffects")

__all__ = [
    "CLASS_COLOURS", "PANEL_INCHES", "class_colours", "colour_bar", "legend", "letter", "new_figure", "panels",
    "pixels", "save", "show_image", "show_map", "show_mask",
]  # fmt: skip

CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
PANEL_INCHES = 2.4
_DPI = 150
_MOST_BYTES = 300_000
_LEVELS = (256, 32, 16, 8)  # of red, green and blue; black, white and what is between them stay far apart


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=_DPI)
    figure.suptitle(title, fontsize=9, parse_math=False)  # a file may have any name, also one with $ signs
    return figure


def panels(count: int, height_by_width: float, title: str, columns: int = 5) -> tuple[Figure, list[Axes]]:
    """A figure with equal panels in rows of at most ``columns``."""
    columns = min(count, columns)
    rows = -(-count // columns)
    height = PANEL_INCHES * max(0.5, min(height_by_width, 2.0)) + 0.45
    figure = new_figure(columns * PANEL_INCHES, rows * height + 0.5, title)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def class_colours(count: int) -> list[Any]:
    """Okabe and Ito's colours, or as many as there are classes, neighbours in number far apart in colour."""
    if count <= len(CLASS_COLOURS):
        return list(CLASS_COLOURS)
    order = [index for start in range(3) for index in range(start, count, 3)]
    return [colormaps["turbo"]((order.index(index) + 0.5) / count) for index in range(count)]


def legend(figure: Figure, entries: Mapping[str, Any]) -> None:
    """Names and their colours below the panels."""
    if not entries:
        return
    few = len(entries) <= len(CLASS_COLOURS)
    figure.legend(
        handles=[Patch(color=colour, label=name) for name, colour in entries.items()],
        loc="outside lower center",
        ncols=4 if few else 5,
        fontsize=7 if few else 4.5,
        frameon=False,
    )


def show_image(axis: Axes, image: torch.Tensor, view: View) -> None:
    """An image (C, x, y): in colours if it has three channels, else the first one in grey."""
    values = torch.as_tensor(image).float().cpu().numpy()
    if values.shape[0] == 3:
        shown: dict[str, Any] = {"X": _turned(np.moveaxis(values / max(values.max(), 1e-6), 0, -1))}
    else:
        low, high = np.percentile(values[0], (1, 99))
        shown = {"X": _turned(values[0]), "cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}
    _show(axis, view, **shown)


def show_mask(axis: Axes, mask: torch.Tensor, colours: Sequence[Any], view: View, alpha: float = 0.55) -> None:
    """A label map (1, x, y) over what is in the panel, without its 0."""
    classes = _turned(torch.as_tensor(mask)[0].cpu().numpy().astype(int))
    shown = np.ma.masked_where(classes == 0, classes - 1)
    limits = {"vmin": -0.5, "vmax": len(colours) - 0.5}
    _show(axis, view, X=shown, cmap=ListedColormap(colours), alpha=alpha, interpolation="none", **limits)


def show_map(axis: Axes, attention: torch.Tensor, view: View, **options: Any) -> Any:
    """A map (1, x, y) in viridis, or what else the options of ``imshow`` say; returns what was drawn."""
    values = _turned(torch.as_tensor(attention)[0].cpu().numpy())
    return _show(axis, view, **{"X": values, "cmap": "viridis", **options})


def colour_bar(axis: Axes, shown: Any, **options: Any) -> Any:
    """A small scale of colours below a panel."""
    bar = axis.figure.colorbar(shown, ax=axis, fraction=0.046, location="bottom", **options)
    bar.ax.tick_params(labelsize=6)
    return bar


def letter(axis: Axes, view: View) -> None:
    """The directions in the patient at the borders of a panel."""
    places = [(0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center")]
    places += [(0.5, 0.02, "center", "bottom"), (0.5, 0.98, "center", "top")]
    outline = [patheffects.withStroke(linewidth=2, foreground="black")]
    for text, (x, y, horizontal, vertical) in zip(view.letters or (), places):
        axis.text(x, y, text, ha=horizontal, va=vertical, transform=axis.transAxes, fontsize=7, color="white",
                  path_effects=outline)  # fmt: skip


def pixels(figure: Figure) -> np.ndarray:
    """A figure as an array (height, width, 3) of 8-bit colours, such as for TensorBoard.

    Example:
        ``writer.add_image("attention", pixels(figure), dataformats="HWC")``
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG below 300 kB, with the same bytes each time, and return its path.

    Pictures of noise would be larger; their colours are rounded until they are not.

    Example:
        ``save(overlay(image, {"prediction": prediction}), "case_001.png")``
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = pixels(figure)
    with atomic_write(path) as draft:
        for levels in _LEVELS:
            rounded = np.rint(np.rint(drawn / 255 * (levels - 1)) * 255 / (levels - 1)).astype(np.uint8)
            Image.fromarray(rounded).save(draft, format="PNG", optimize=True)
            if draft.stat().st_size < _MOST_BYTES:
                break
    return path


def _turned(slice_: np.ndarray) -> np.ndarray:
    """Array index (x, y) to picture (row, column)."""
    return np.swapaxes(slice_, 0, 1)


def _show(axis: Axes, view: View, **shown: Any) -> Any:
    drawn = axis.imshow(origin="lower" if view.up else "upper", aspect=view.aspect, **shown)
    left, right = sorted(axis.get_xlim())
    axis.set_xlim((left, right) if view.right else (right, left))
    axis.set(xticks=[], yticks=[])  # unseen ticks would take half of the time to draw
    axis.set_axis_off()
    axis.set_anchor("N")  # panels with and without a scale of colours stand side by side
    return drawn
