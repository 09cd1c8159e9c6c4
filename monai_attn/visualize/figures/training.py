# SPDX-License-Identifier: Apache-2.0
"""Draw training curves, and attention maps by epoch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from monai_attn.visualize.figures import panels
from monai_attn.visualize.figures.panels import CLASS_COLORS, View
from monai_attn.visualize.maps import gate_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["epoch_files", "excitation_by_epoch", "training_curves"]

_INCHES = 1.8  # of a panel
_MOST_EPOCHS = 7  # of Fig. 7 of the scSE paper
_TERM_COLORS = tuple(color for color in CLASS_COLORS if color != CLASS_COLORS[4])  # that is the whole loss's


def training_curves(loss: Sequence[tuple[int, float]], metrics: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Draw training loss and validation metrics by iteration.

    Curves are pairs of iteration and value. Metrics that begin with ``loss_`` are terms of the training loss, as of
    :class:`monai_attn.handlers.LossTerms`.

    Example:
        >>> len(training_curves([(1, 0.9), (2, 0.7)], {"dice": [(2, 0.6)]}).axes)
        2
    """
    terms = {name: values for name, values in metrics.items() if name.startswith("loss_")}
    validation = {name: values for name, values in metrics.items() if name not in terms}
    figure, axes = panels.grid(2 if validation else 1, 0.7, "")
    axes[0].plot(*zip(*loss), color=CLASS_COLORS[4], linewidth=0.6, label="total")
    axes[0].set_ylim(bottom=0)
    for color, (name, values) in zip(cycle(_TERM_COLORS), terms.items()):
        axes[0].plot(*zip(*values), color=color, linewidth=1.2, label=name.removeprefix("loss_"))
        axes[0].legend(fontsize=6, loc="upper right")
    for color, (name, values) in zip(cycle(CLASS_COLORS), validation.items()):
        axes[1].plot(*zip(*values), color=color, marker="o", markersize=3, label=name)
        axes[1].set_ylim(0, np.nanmax([1.0, *(value for curve in validation.values() for _, value in curve)]))
        axes[1].legend(fontsize=7, loc="lower right")
    for axis, name in zip(axes, ["training loss", "validation"]):
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("iteration", fontsize=7)
        axis.tick_params(labelsize=6)
    return figure


def epoch_files(folder: str | Path) -> dict[int, Path]:
    """Return the files of ``AttentionMapHandler`` by epoch, in order."""
    paths = Path(folder).glob("epoch_*.npz")
    found = {int(number): path for path in paths if (number := path.stem.removeprefix("epoch_")).isdecimal()}
    return dict(sorted(found.items()))


def excitation_by_epoch(
    folder: str | Path, *, gates: Sequence[str] = (), case: str | None = None, title: str = ""
) -> Figure:
    """Draw attention maps by epoch (scSE paper, Fig. 7).

    Args:
        folder: folder of :class:`monai_attn.handlers.AttentionMapHandler`; at most 7 of its epochs are drawn.
        gates: the gates to draw, a row each; by default the first and the last.
        case: the case to draw; by default the first.
        title: title of the figure.

    Raises:
        FileNotFoundError: if the folder has no such files.
        ValueError: if they lack a gate or the case.

    Example:
        ``save(excitation_by_epoch("out/attention"), "fig7.png")``
    """
    files = epoch_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} has no files epoch_<number>.npz; AttentionMapHandler writes them.")
    every = list(files)
    epochs = [every[round(i)] for i in np.linspace(0, len(every) - 1, min(len(every), _MOST_EPOCHS))]
    arrays = [dict(np.load(files[epoch])) for epoch in epochs]
    keys = [key.split("/", 2) for key in arrays[0] if all(key in saved for saved in arrays)]
    case = case or keys[0][1]
    found = [key[2] for key in keys if key[:2] == ["map", case]]
    rows = list(gates) or list(dict.fromkeys(found[:1] + found[-1:]))
    if not rows or not set(rows) <= set(found):
        raise ValueError(f"{folder} has of case '{case}' the gates {found}, not {rows}; give one of these.")
    image, view = torch.tensor(arrays[0][f"image/{case}"]).float(), View(*json.loads(str(arrays[0][f"view/{case}"])))
    height = _INCHES * image.shape[2] * view.aspect / image.shape[1] + 0.25
    figure = panels.new_figure(_INCHES * (1 + len(epochs)) + 0.6, height * len(rows) + 0.4, title or case)
    axes = figure.subplots(len(rows), 1 + len(epochs), squeeze=False)
    most = max([1.0, *(float(saved[f"map/{case}/{gate}"].max()) for saved in arrays for gate in rows)])
    for row, gate in zip(axes, rows):
        for axis in row:
            panels.show_image(axis, image, view)
        panels.show_letters(row[0], view)
        row[0].set_title(gate_title(gate), fontsize=7)
        for axis, epoch, saved in zip(row[1:], epochs, arrays):
            attention = torch.tensor(saved[f"map/{case}/{gate}"]).float()
            shown = panels.show_map(axis, attention, view, alpha=0.7, vmin=0, vmax=most)
            axis.set_title(f"epoch {epoch}", fontsize=7)
    panels.color_bar(list(axes.flat), shown)
    return figure
