# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from monai_attn.visualize import figures


def test_training_curves_show_the_loss_with_its_terms_and_the_metrics():
    terms = {"loss_semantic": [(2, 1.5)], "loss_edge_bce": [(2, 0.5)]}
    alone = figures.training_curves([(1, 2.0), (2, 1.0)], terms)
    both = figures.training_curves([(1, 2.0), (2, 1.0)], {**terms, "dice": [(2, 0.7)]})
    for figure, panels in ((alone, 1), (both, 2)):
        assert len(figure.axes) == panels
        assert [line.get_label() for line in figure.axes[0].lines] == ["total", "semantic", "edge_bce"]
        assert len({line.get_color() for line in figure.axes[0].lines}) == 3
        assert list(figure.axes[0].lines[0].get_ydata()) == [2.0, 1.0]
    assert [(line.get_label(), *line.get_xdata()) for line in both.axes[1].lines] == [("dice", 2)]
    assert both.axes[1].get_ylim() == (0, 1)
    many = figures.training_curves([(1, 2.0)], {"val_loss": [(1, 2.5)], **{f"dice_{i}": [(1, 0.5)] for i in range(9)}})
    assert len(many.axes[1].lines) == 10
    assert many.axes[1].get_ylim()[1] == 2.5


@pytest.fixture
def epochs(tmp_path):
    for epoch in range(1, 10):
        maps = {f"map/a/{gate}": np.full((1, 4, 5), epoch / 10, np.float16) for gate in ("se.0", "middle", "last")}
        view = np.array(json.dumps(figures.View(letters=("R", "L", "P", "A"))))
        np.savez(tmp_path / f"epoch_{epoch:04}.npz", **{"image/a": np.zeros((1, 4, 5)), "view/a": view}, **maps)
    return tmp_path


def test_the_figure_of_the_paper_shows_the_first_and_the_last_gate_in_seven_epochs(epochs):
    figure = figures.excitation_by_epoch(epochs)
    chosen = [f"epoch {number}" for number in (1, 2, 4, 5, 6, 8, 9)]
    assert [axis.get_title() for axis in figure.axes][:16] == ["se 1", *chosen, "last", *chosen]
    assert np.allclose(figure.axes[7].images[-1].get_array(), 0.9, atol=1e-3)
    assert [text.get_text() for text in figure.axes[0].texts] == ["R", "L", "P", "A"]
    assert figure.get_suptitle() == "a"


def test_a_gate_a_case_or_a_folder_that_is_not_there_is_refused(epochs):
    for wrong in ({"gates": ["nowhere"]}, {"case": "b"}):
        with pytest.raises(ValueError, match="give one of these"):
            figures.excitation_by_epoch(epochs, **wrong)
    with pytest.raises(FileNotFoundError, match="AttentionMapHandler writes them"):
        figures.excitation_by_epoch(epochs / "nowhere")
