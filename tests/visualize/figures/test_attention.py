# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_attn.visualize import figures


def pixels(axis) -> np.ndarray:
    return np.ma.getdata(axis.images[-1].get_array())


def test_attention_grid_draws_spatial_maps_on_the_image_and_channel_maps_as_bars():
    maps = {"a.spatial.gate": torch.rand(1, 1, 5, 4), "a.channel.gate": torch.tensor([[[[0.3]], [[0.1]]]])}
    figure = figures.attention_grid(torch.rand(1, 10, 8), maps)
    by_title = {axis.get_title(): axis for axis in figure.axes}
    assert pixels(by_title["a.spatial"]).shape == (8, 10)
    assert [bar.get_height() for bar in by_title["a.channel"].patches] == pytest.approx([0.1, 0.3])


def test_attention_grid_wants_the_maps_of_one_image():
    with pytest.raises(ValueError, match="capture one 2D image"):
        figures.attention_grid(torch.rand(1, 10, 8), {"gate": torch.rand(2, 1, 10, 8)})


def test_attention_grid_shows_a_slice_the_way_it_is_told():
    volume = MetaTensor(torch.rand(1, 6, 10, 8), affine=torch.eye(4))
    view = figures.slice_view(volume, spatial_dim=0)
    figure = figures.attention_grid(volume[:, 3].as_tensor(), {"gate": torch.rand(1, 1, 5, 4)}, view=view)
    assert [text.get_text() for text in figure.axes[0].texts] == ["A", "P", "I", "S"]
    assert figure.axes[0].get_xlim()[0] > figure.axes[0].get_xlim()[1]


WEIGHTS = {
    "first": torch.tensor([0.6, 0.4])[:, None, None].expand(2, 5, 4),
    "second": torch.stack([torch.linspace(0, 1, 20).reshape(5, 4), 1 - torch.linspace(0, 1, 20).reshape(5, 4)]),
}


def test_scale_maps_show_each_weight_and_the_largest_in_millimetres():
    figure = figures.scale_maps(torch.rand(1, 5, 4), WEIGHTS, {"first": (2, 6), "second": (6, 12)})
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in panels] == [
        *("image", "first: 2 mm", "6 mm", "largest weight"),
        *("image", "second: 6 mm", "12 mm", "largest weight"),
    ]
    every = np.array([2, 6, 12])
    assert set(every[pixels(panels[3])].flat) == {2}
    second = np.where(WEIGHTS["second"][0] >= WEIGHTS["second"][1], 6, 12)
    assert np.array_equal(every[pixels(panels[7])], second.T)
    bars = [axis for axis in figure.axes if axis.get_xlabel() == "mm"]
    assert [label.get_text() for label in bars[0].get_xticklabels()] == ["2", "6", "12"]


def test_scale_maps_cut_a_volume_where_they_are_told():
    volume = {name: weights[..., None] * torch.ones(3) for name, weights in WEIGHTS.items()}
    volume["second"][..., 1] = torch.tensor([1.0, 0.0])[:, None, None]
    scales = {"first": (2, 6), "second": (6, 12)}
    figure = figures.scale_maps(torch.rand(1, 5, 4, 3), volume, scales, index=1)
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert set(pixels(panels[7]).flat) == {1}


def test_scale_maps_want_as_many_scales_as_weights():
    with pytest.raises(ValueError, match="layer 'first' has 2 weights"):
        figures.scale_maps(torch.rand(1, 5, 4), WEIGHTS, {"first": (2,), "second": (2, 4)})


@pytest.fixture
def edges():
    target = torch.zeros(1, 8, 9, 7)
    target[0, 2:6, 3:6, 5] = 1
    return {"maps": {"alpha": torch.rand(1, 8, 9, 7)}, "edges": torch.rand(1, 8, 9, 7), "target": target}


def test_edges_are_shown_alone_and_on_the_image_in_the_slice_with_most_of_the_target(edges):
    figure = figures.edge_overlay(torch.rand(1, 8, 9, 7), **edges)
    panels = [axis for axis in figure.axes if axis.get_title()]
    titles = ["image", "alpha", "predicted edges", "target (Sobel)", "predicted (orange), target (blue), both (green)"]
    assert [axis.get_title() for axis in panels] == titles
    assert np.allclose(pixels(panels[1]), edges["maps"]["alpha"][0, :, :, 5].T)
    assert np.allclose(pixels(panels[3]), edges["target"][0, :, :, 5].T)
    found = np.ma.filled(panels[4].images[-1].get_array() + 1, 0)
    expected = (edges["edges"][0, :, :, 5] > 0.5).int() + 2 * edges["target"][0, :, :, 5].int()
    assert np.array_equal(found, expected.T)


def test_without_a_target_edges_are_shown_in_the_middle(edges):
    figure = figures.edge_overlay(torch.rand(1, 8, 9, 7), edges["maps"], edges["edges"])
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert np.allclose(pixels(panels[2]), edges["edges"][0, :, :, 3].T)
    assert panels[-1].get_title() == "predicted"


def test_edges_on_another_grid_are_refused(edges):
    with pytest.raises(ValueError, match="'predicted edges' has the spatial shape"):
        figures.edge_overlay(torch.rand(1, 8, 9, 7), edges["maps"], torch.rand(1, 3, 3, 3))
