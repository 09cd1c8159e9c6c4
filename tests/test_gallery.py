# SPDX-License-Identifier: Apache-2.0
"""The figures that docs/gallery.py draws itself."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from monai.data import MetaTensor

from monai_attn.visualize.figures import CLASS_COLORS


@pytest.fixture(scope="module")
def gallery():
    path = Path(__file__).parents[1] / "docs" / "gallery.py"
    specification = importlib.util.spec_from_file_location("gallery", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def image():
    return MetaTensor(torch.rand(1, 7, 8, 9), affine=torch.eye(4))


def pixels(axis) -> np.ndarray:
    return np.ma.getdata(axis.images[-1].get_array())


def test_edges_are_shown_alone_and_on_the_image_in_the_slice_with_most_of_the_target(gallery, image):
    edges, alpha, target = torch.rand(1, 7, 8, 9), torch.rand(1, 7, 8, 9), torch.zeros(1, 7, 8, 9)
    target[0, 5, 2:6, 3:6] = 1
    figure = gallery.edge_overlay(image, {"alpha": alpha}, edges, target)
    panels = [axis for axis in figure.axes if axis.get_title()]
    titles = ["image", "alpha", "predicted edges", "target (Sobel)", "predicted (orange), target (blue), both (green)"]
    assert [axis.get_title() for axis in panels] == titles
    assert np.allclose(pixels(panels[1]), alpha[0, 5].T)
    found = np.ma.filled(panels[4].images[-1].get_array() + 1, 0)
    assert np.array_equal(found, ((edges[0, 5] > 0.5).int() + 2 * target[0, 5].int()).T)


def test_scale_maps_show_each_weight_and_the_scale_of_the_largest(gallery, image):
    label, weights = torch.zeros(1, 7, 8, 9), torch.rand(2, 7, 8, 9)
    label[0, 4] = 1
    figure = gallery.scale_maps(image, {"first": weights, "second": 1 - weights}, [2, 6], label)
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels[:4]] == ["image", "first: 2 mm", "6 mm", "largest weight"]
    assert np.allclose(pixels(panels[1]), weights[0, 4].T)
    assert np.array_equal(pixels(panels[7]), (1 - weights).argmax(dim=0)[4].T)
    bar = next(axis for axis in figure.axes if axis.get_xlabel() == "mm")
    assert [label.get_text() for label in bar.get_xticklabels()] == ["2", "6"]


def test_boxes_stand_by_structure_in_the_color_of_their_method_without_nan(gallery):
    scores = {"U-Net": {"liver": [0.9, 0.8, 0.85, math.nan]}, "scSE": {"liver": [0.95, 0.9, 0.93], "kidney": [0.9]}}
    axis = gallery.structure_boxplot(scores, metric="HD95 (mm)").axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["liver", "kidney"]
    assert [to_hex(patch.get_facecolor()).upper() for patch in axis.patches] == [
        c for c in CLASS_COLORS[:2] for _ in "ab"
    ]
    medians = [line.get_ydata()[0] for line in axis.lines if line.get_linewidth() == 1.2]
    assert medians == pytest.approx([0.85, math.nan, 0.93, 0.9], nan_ok=True)


def test_the_box_stands_where_the_better_segmentation_wins_most(gallery):
    truth = torch.zeros(1, 8, 16, 16)
    truth[0, 4:6, 2:5, 2:5], truth[0, 4:6, 10:14, 8:12] = 1, 2
    worse, better = truth.clone(), truth.clone()
    worse[truth == 2] = 0
    better[truth == 1] = 0
    masks = {"truth": truth, "worse": worse, "better": better}
    figure = gallery.improved_region(MetaTensor(torch.rand(1, 8, 16, 16), affine=torch.eye(4)), masks)
    boxes = [[(box.get_xy(), box.get_width(), box.get_height()) for box in axis.patches] for axis in figure.axes]
    assert boxes == [[], *[[((9.5, 7.5), 4, 4)]] * 3]
    assert np.array_equal(np.ma.filled(figure.axes[3].images[-1].get_array() + 1, 0), better[0, 4].T)


def test_each_organ_has_a_block_of_image_masks_and_attention(gallery, image):
    label, attention = torch.ones(1, 7, 8, 9), torch.rand(1, 7, 8, 9)
    organ = gallery.Organ("brain", image, {"manual": label, "prediction": label}, {"encoder 2": attention}, 1, ("a",))
    blocks = gallery.several_organs([organ, organ._replace(title="skin")]).subfigs
    assert [block.get_suptitle() for block in blocks] == ["brain", "skin"]
    for block in blocks:
        assert [axis.get_title() for axis in block.axes] == ["image", "manual", "prediction", "attention"]


def test_the_attention_map_that_varies_most_is_shown(gallery):
    maps = {"bright": torch.full((1, 2, 2), 0.9), "edges": torch.eye(2)[None], "weak edges": torch.eye(2)[None] / 2}
    assert gallery.most_varied(maps)[0] == "edges"


def test_a_row_of_the_comparisons_has_the_options_of_its_table_and_its_own(gallery):
    row = gallery.evidence_row("scse", "U-Net + scSE")
    assert (row["bundle"].name, row["split"]) == ("hippocampus_mri_scse_segmentation", "brain_synthetic")
    assert row["overrides"]["se"] == "scse"
    assert len(row["overrides"]["structures"]) == 27
