# SPDX-License-Identifier: Apache-2.0
"""The course of a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from monai_attn.visualize.figures.panels import CLASS_COLOURS, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["training_curves"]

_TERM_COLOURS = tuple(colour for colour in CLASS_COLOURS if colour != CLASS_COLOURS[4])  # that is the whole loss's


def training_curves(loss: Sequence[tuple[int, float]], metrics: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Draw the training loss and the validation metrics over the iterations.

    Args:
        loss: pairs of iteration and loss.
        metrics: name of the metric to pairs of iteration and value. Names that begin with ``loss_`` are terms of the
            training loss, as of :class:`monai_attn.handlers.LossTerms`.

    Returns:
        a figure with a panel for the loss and its terms and, if there are metrics, one for them.

    Example:
        >>> len(training_curves([(1, 0.9), (2, 0.7)], {"dice": [(2, 0.6)]}).axes)
        2
    """
    terms = {name: values for name, values in metrics.items() if name.startswith("loss_")}
    validation = {name: values for name, values in metrics.items() if name not in terms}
    figure, axes = panels(2 if validation else 1, 0.7, "")
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
