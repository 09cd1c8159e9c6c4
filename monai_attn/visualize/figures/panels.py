# SPDX-License-Identifier: Apache-2.0
"""Draw the panels of a figure, with layers and titles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import MetaKeys, SpaceKeys, convert_to_tensor, optional_import

from monai_attn.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Figure, _ = optional_import("matplotlib.figure", name="Figure")

__all__ = ["CLASS_COLORS", "View", "best_slice", "cut", "save", "slice_view", "to_ras"]


_AXES = ("LR", "PA", "IS")  # of the world, from low to high
_OBLIQUE = 0.25  # cosine from which on a second axis of the world is named


class View(NamedTuple):
    """How to draw an array (x, y).

    Attributes:
        aspect: height of a pixel by its width.
        right: whether the first axis points to the right, not to the left.
        up: whether the second axis points up, not down.
        letters: directions in the patient at the left, right, bottom and top border, if they are known.

    Example:
        >>> View(aspect=2.0).letters is None
        True
    """

    aspect: float = 1.0
    right: bool = True
    up: bool = False
    letters: tuple[str, str, str, str] | None = None


def best_slice(label: torch.Tensor, spatial_dim: int) -> int:
    """Return the index of the slice with the most foreground.

    The label map is (1, *spatial).

    Example:
        >>> best_slice(torch.tensor([[[0, 0], [1, 2], [0, 1]]]), spatial_dim=0)
        1
    """
    others = tuple(axis for axis in range(label.ndim) if axis != spatial_dim + 1)
    return int(np.count_nonzero((label > 0).numpy(force=True), axis=others).argmax())  # PyTorch's sum takes four times


def slice_view(image: torch.Tensor, spatial_dim: int = 2) -> View:
    """Return the view of a 2D image or volume slice.

    A volume (C, *spatial) should be near RAS orientation; its second remaining axis points up. With metadata, the view
    is in radiological convention: the first axis points to the patient's left, or to the back. Without, a voxel has 1
    mm.

    Example:
        >>> slice_view(MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.eye(4)), spatial_dim=1).letters
        ('R', 'L', 'I', 'S')
    """
    sizes = image.pixdim.tolist() if isinstance(image, MetaTensor) else [1.0] * 3
    if image.ndim == 3:
        return View(sizes[1] / sizes[0])
    first, second = (axis for axis in range(3) if axis != spatial_dim)
    aspect = sizes[second] / sizes[first]
    if not isinstance(image, MetaTensor):
        return View(aspect, up=True)
    (low, high), (bottom, top) = (_ends(image, axis) for axis in (first, second))
    right, up = low[0] in "RA", top[0] in "AS"
    horizontal, vertical = (low, high) if right else (high, low), (bottom, top) if up else (top, bottom)
    return View(aspect, right, up, (*horizontal, *vertical))


def to_ras(image: torch.Tensor, layers: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Reorient a volume (C, *spatial) and its layers to RAS.

    Raises:
        ValueError: if a layer has another spatial shape than the image.
    """
    for name, layer in layers.items():
        if layer.shape[1:] != image.shape[1:]:
            sizes = tuple(layer.shape[1:]), tuple(image.shape[1:])
            raise ValueError(f"'{name}' has the spatial shape {sizes[0]}, the image {sizes[1]}; use one grid.")
    if image.ndim < 4 or not isinstance(image, MetaTensor):
        return image, dict(layers)
    turn = Orientation(axcodes="RAS", labels=None)
    plain = {name: convert_to_tensor(layer, device="cpu") for name, layer in layers.items()}  # without metadata
    return turn(image.cpu()), {name: turn(MetaTensor(layer, meta=image.meta)) for name, layer in plain.items()}


def cut(
    image: torch.Tensor, layers: Mapping[str, torch.Tensor], spatial_dim: int, by: Iterable[str]
) -> tuple[torch.Tensor, dict[str, torch.Tensor], View]:
    """Cut a slice and its layers from a volume.

    It is the slice with the most foreground of the first of the layers ``by`` that has any, else the middle one.
    """
    view = slice_view(image, spatial_dim)
    if image.ndim < 4:
        return image, dict(layers), view
    best = (best_slice(layers[name], spatial_dim) for name in by if layers[name].max() > 0)
    index = next(best, image.shape[spatial_dim + 1] // 2)
    image, *slices = (layer.select(spatial_dim + 1, index) for layer in (image, *layers.values()))
    return image, dict(zip(layers, slices)), view


def _ends(image: MetaTensor, axis: int) -> tuple[str, str]:
    """Return an axis's directions, with two letters if oblique."""
    is_lps = image.meta.get(MetaKeys.SPACE) == SpaceKeys.LPS
    direction = torch.as_tensor(image.affine)[:3, axis].double() * torch.tensor([-1, -1, 1] if is_lps else [1, 1, 1])
    direction = direction / direction.norm()
    along = [i for i in direction.abs().argsort(descending=True).tolist() if abs(direction[i]) >= _OBLIQUE]
    high = "".join(_AXES[i][int(direction[i] > 0)] for i in along)
    low = "".join(_AXES[i][int(direction[i] < 0)] for i in along)
    return low, high


FigureCanvasAgg, _ = optional_import("matplotlib.backends.backend_agg", name="FigureCanvasAgg")
Image, _ = optional_import("PIL.Image")
ListedColormap, _ = optional_import("matplotlib.colors", name="ListedColormap")
Patch, _ = optional_import("matplotlib.patches", name="Patch")
colormaps, _ = optional_import("matplotlib", name="colormaps")
patheffects, _ = optional_import("matplotlib.patheffects")


CLASS_COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
_PANEL_INCHES = 2.4
_DPI = 150
_MOST_BYTES = 300_000
_LEVELS = (32, 16, 8)  # of red, green and blue; black, white and what is between them stay far apart
_BORDERS = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"),
            (0.5, 0.02, "center", "bottom"), (0.5, 0.98, "center", "top"))  # fmt: skip


def new_figure(width: float, height: float, title: str) -> Figure:
    """Return an empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=_DPI)
    figure.suptitle(
        title.encode(errors="replace").decode(), fontsize=9, parse_math=False
    )  # a file may have any name, also one with $ signs
    return figure


def grid(count: int, height_by_width: float, title: str, columns: int = 5) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, at most ``columns`` in a row."""
    rows = -(-count // columns)
    columns = -(-count // rows)  # rows of one length, as far as possible
    height = _PANEL_INCHES * max(0.5, min(height_by_width, 2.0)) + 0.45
    figure = new_figure(columns * _PANEL_INCHES, rows * height + 0.5, title)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def class_colors(count: int) -> list[Any]:
    """Return Okabe and Ito's colors, or more where needed."""
    if count <= len(CLASS_COLORS):
        return list(CLASS_COLORS)
    order = [index for start in range(3) for index in range(start, count, 3)]
    return [colormaps["turbo"]((order.index(index) + 0.5) / count) for index in range(count)]


def legend(figure: Figure, entries: Mapping[str, Any]) -> None:
    """Add names and their colors below the panels."""
    if entries:
        few = len(entries) <= len(CLASS_COLORS)
        handles = [Patch(color=color, label=name) for name, color in entries.items()]
        columns, size = (4, 7) if few else (5, 4.5)
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=size, frameon=False)


def show_image(axis: Axes, image: torch.Tensor, view: View) -> None:
    """Show an image (C, x, y) in RGB or gray."""
    values = torch.as_tensor(image).float().cpu().numpy()
    if values.shape[0] == 3:
        shown: dict[str, Any] = {"X": _turned(np.moveaxis(values / max(values.max(), 1e-6), 0, -1))}
    else:
        low, high = np.percentile(values[0], (1, 99))
        shown = {"X": _turned(values[0]), "cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}
    _show(axis, view, **shown)


def show_mask(axis: Axes, mask: torch.Tensor, colors: Sequence[Any], view: View, alpha: float = 0.55) -> None:
    """Overlay the foreground classes of labels (1, x, y)."""
    classes = _turned(torch.as_tensor(mask)[0].cpu().numpy().astype(int))
    shown = np.ma.masked_where(classes == 0, classes - 1)
    limits = {"vmin": -0.5, "vmax": len(colors) - 0.5}
    _show(axis, view, X=shown, cmap=ListedColormap(colors), alpha=alpha, interpolation="none", **limits)


def show_map(axis: Axes, attention: torch.Tensor, view: View, **options: Any) -> Any:
    """Show a map (1, x, y) with options of ``imshow``."""
    values = _turned(torch.as_tensor(attention)[0].cpu().numpy())
    return _show(axis, view, **{"X": values, "cmap": "viridis", **options})


def color_bar(axes: Axes | Sequence[Axes], shown: Any) -> Any:
    """Add a small scale of colors below a panel, or one to the right of several."""
    several: dict[str, Any] = {"fraction": 0.02, "pad": 0.01, "aspect": 30}
    options = several if isinstance(axes, Sequence) else {"fraction": 0.046, "location": "bottom"}
    bar = shown.axes.figure.colorbar(shown, ax=axes, **options)
    bar.ax.tick_params(labelsize=6)
    return bar


def show_letters(axis: Axes, view: View) -> None:
    """Write the patient's directions at the borders of a panel."""
    outline = [patheffects.withStroke(linewidth=2, foreground="black")]
    for text, (x, y, horizontal, vertical) in zip(view.letters or (), _BORDERS):
        place: dict[str, Any] = {"ha": horizontal, "va": vertical, "transform": axis.transAxes}
        axis.text(x, y, text, fontsize=7, color="white", path_effects=outline, **place)


def save(figure: Figure, path: str | Path) -> Path:
    """Save a figure as PNG below 300 kB, reproducibly.

    The colors of larger pictures are rounded.

    Example:
        ``save(overlay(image, {"prediction": prediction}), "case_001.png")``
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    drawn = np.asarray(canvas.buffer_rgba())[..., :3]
    with atomic_write(path) as draft:
        Image.fromarray(drawn).save(draft, format="PNG")
        for levels in _LEVELS:
            if draft.stat().st_size < _MOST_BYTES:
                break
            rounded = np.rint(np.rint(drawn / 255 * (levels - 1)) * 255 / (levels - 1)).astype(np.uint8)
            Image.fromarray(rounded).save(draft, format="PNG", optimize=True)
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
    axis.set_anchor("N")  # panels with and without a scale of colors stand side by side
    return drawn
