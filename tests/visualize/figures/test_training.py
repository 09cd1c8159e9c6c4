# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from monai_attn.visualize import figures


def test_training_curves_show_what_was_logged():
    figure = figures.training_curves([(1, 2.0), (2, 1.0)], {"dice": [(2, 0.7)]})
    assert list(figure.axes[0].lines[0].get_ydata()) == [2.0, 1.0]
    assert list(figure.axes[1].lines[0].get_xdata()) == [2]


def test_terms_of_the_loss_are_drawn_beside_it_and_not_among_the_metrics():
    terms = {"loss_semantic": [(2, 1.5)], "loss_edge_bce": [(2, 0.5)]}
    alone = figures.training_curves([(1, 2.0), (2, 1.0)], terms)
    both = figures.training_curves([(1, 2.0), (2, 1.0)], {**terms, "dice": [(2, 0.7)]})
    for figure, panels in ((alone, 1), (both, 2)):
        assert len(figure.axes) == panels
        assert [line.get_label() for line in figure.axes[0].lines] == ["total", "semantic", "edge_bce"]
        assert len({line.get_color() for line in figure.axes[0].lines}) == 3
    assert [line.get_label() for line in both.axes[1].lines] == ["dice"]
