# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_attn.visualize.figures import Region, improved_region, overlay


@pytest.fixture
def labels():
    truth = torch.zeros(1, 16, 16)
    truth[0, 2:5, 2:5] = 1
    truth[0, 10:14, 10:14] = 2
    worse, better = truth.clone(), truth.clone()
    worse[0, 10:14, 10:14] = 0  # misses the larger structure
    better[0, 2:5, 2:5] = 0  # and the other one the smaller
    return truth, worse, better


def test_the_box_is_where_the_better_one_wins_most(labels):
    truth, worse, better = labels
    assert improved_region(truth, worse, better) == Region((10, 10), (4, 4))
    assert improved_region(truth, better, worse, size=(3, 3)) == Region((2, 2), (3, 3))


def test_it_is_found_in_volumes_too(labels):
    volumes = [torch.stack([torch.zeros_like(label), label], dim=-1) for label in labels]
    assert improved_region(*volumes, size=(4, 4, 1)) == Region((10, 10, 1), (4, 4, 1))


def test_the_box_is_drawn_on_every_mask_in_its_slice(labels):
    truth, worse, better = (torch.stack([torch.zeros_like(label), label, label], dim=-1) for label in labels)
    box = improved_region(truth, worse, better, size=(4, 4, 1))
    figure = overlay(torch.rand(1, 16, 16, 3), {"truth": truth, "a": worse, "b": better}, box=box)
    (drawn,) = figure.axes[1].patches
    assert (drawn.get_x(), drawn.get_y(), drawn.get_width(), drawn.get_height()) == (9.5, 9.5, 4, 4)
    assert [len(axis.patches) for axis in figure.axes[:4]] == [0, 1, 1, 1]


def test_what_has_no_box_is_refused(labels):
    truth, worse, better = labels
    with pytest.raises(ValueError, match="put them on one grid"):
        improved_region(truth, worse[:, 1:], better)
    with pytest.raises(ValueError, match=r"at most the image's \(16, 16\), got \(17, 2\)"):
        improved_region(truth, worse, better, size=(17, 2))
