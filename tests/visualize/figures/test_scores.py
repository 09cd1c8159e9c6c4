# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
from matplotlib.colors import to_hex

from monai_attn.visualize.figures import CLASS_COLOURS, save, structure_boxplot

SCORES = {
    "U-Net": {"liver": [0.9, 0.8, 0.85, math.nan], "spleen": [0.7, 0.75, math.nan]},
    "scSE": {"liver": [0.95, 0.9, 0.93], "spleen": [0.8, 0.82], "kidney": [0.9]},
}


def test_boxes_stand_by_structure_and_have_the_colour_of_their_method():
    figure = structure_boxplot(SCORES, title="cases")
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["liver", "spleen", "kidney"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["U-Net", "scSE"]
    assert (axis.get_ylabel(), figure.get_suptitle()) == ("Dice", "cases")
    colours = [to_hex(patch.get_facecolor()).upper() for patch in axis.patches]
    assert colours == [CLASS_COLOURS[0]] * 3 + [CLASS_COLOURS[1]] * 3


def test_values_that_are_nan_are_left_out():
    axis = structure_boxplot(SCORES, metric="HD95 (mm)").axes[0]
    medians = [line.get_ydata()[0] for line in axis.lines if to_hex(line.get_color()) == "#000000"
               and line.get_linewidth() == 1.2]  # fmt: skip
    assert medians[:2] == pytest.approx([0.85, 0.725])
    assert math.isnan(medians[2])  # the first method has no kidney
    assert axis.get_ylabel() == "HD95 (mm)"


def test_many_structures_have_names_that_do_not_overlap(tmp_path):
    scores = {method: {f"structure {i}": [0.5, 0.6] for i in range(27)} for method in ("none", "cSE", "sSE", "scSE")}
    figure = structure_boxplot(scores)
    assert figure.axes[0].get_xticklabels()[0].get_rotation() == 60
    paths = [save(structure_boxplot(scores), tmp_path / f"{i}.png") for i in (1, 2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size < 300_000


@pytest.mark.parametrize("scores", [{}, {"U-Net": {}}])
def test_no_scores_are_refused(scores):
    with pytest.raises(ValueError, match="give method -> structure -> values"):
        structure_boxplot(scores)
