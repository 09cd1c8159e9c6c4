# SPDX-License-Identifier: Apache-2.0
"""Scores of methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from monai_attn.visualize.figures.panels import class_colours, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["structure_boxplot"]

_GROUP = 0.8  # of the distance between two structures


def structure_boxplot(
    scores: Mapping[str, Mapping[str, Sequence[float]]], *, metric: str = "Dice", title: str = ""
) -> Figure:
    """Draw box plots of the scores of all cases, by structure and method (Figs. 3 and 4 of the scSE paper).

    A box reaches from the first to the third quartile with the median in it, the whiskers to the last value within 1.5
    times its height, and what lies beyond is a point. A structure that a method has no number for has no box there.

    Args:
        scores: method to structure to the values of the cases; those that are NaN are left out.
        metric: what the values are.
        title: title of the figure.

    Raises:
        ValueError: if there are no scores.

    Example:
        >>> figure = structure_boxplot({"U-Net": {"liver": [0.9, 0.8]}, "scSE": {"liver": [0.95, 0.9]}})
        >>> figure.axes[0].get_ylabel()
        'Dice'
    """
    structures = list(dict.fromkeys(name for values in scores.values() for name in values))
    if not structures:
        raise ValueError(f"scores has {len(scores)} methods and no structure; give method -> structure -> values.")
    boxes = len(structures) * len(scores)
    figure = new_figure(min(max(3.5, 1.5 + 0.28 * boxes), 16), 3.4, title)
    axis = figure.subplots()
    width = _GROUP / len(scores)
    for number, (colour, values) in enumerate(zip(class_colours(len(scores)), scores.values())):
        offset = (number + 0.5) * width - _GROUP / 2
        columns = [np.asarray(values.get(structure, ()), dtype=float) for structure in structures]
        axis.boxplot(
            [column[~np.isnan(column)] for column in columns],
            positions=[place + offset for place in range(len(structures))],
            widths=0.85 * width,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": colour, "linewidth": 0.6},
            medianprops={"color": "black", "linewidth": 1.2},
            whiskerprops={"linewidth": 0.6},
            capprops={"linewidth": 0.6},
            flierprops={"marker": ".", "markersize": 3, "markerfacecolor": "black", "markeredgewidth": 0},
        )
    axis.set_xlim(-0.6, len(structures) - 0.4)
    axis.set_xticks(range(len(structures)), structures, fontsize=7)
    if len(structures) > 6 or max(map(len, structures)) > 14:
        axis.tick_params(axis="x", rotation=60)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_ylabel(metric, fontsize=8)
    axis.grid(axis="y", linewidth=0.3)
    axis.set_axisbelow(True)
    legend(figure, dict(zip(scores, class_colours(len(scores)))))
    return figure
