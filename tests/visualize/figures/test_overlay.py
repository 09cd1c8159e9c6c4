# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_attn.visualize import figures


@pytest.fixture
def volume() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(1, 12, 10, 8, generator=torch.Generator().manual_seed(0))
    label = torch.zeros(1, 12, 10, 8, dtype=torch.uint8)
    label[0, 7, 2:5, 3:6] = 1
    label[0, 3, 2:3, 3:4] = 2
    return image, label


def pixels(axis) -> np.ndarray:
    return np.ma.getdata(axis.images[-1].get_array())


def test_an_overlay_shows_the_slice_with_foreground_upright(volume):
    image, label = volume
    figure = figures.overlay(image, {"truth": label}, spatial_dim=0, title="case", class_names=["a", "b"])
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth"]
    assert np.allclose(pixels(figure.axes[0]), image[0, 7].T)
    drawn = figure.axes[1].images[-1].get_array()
    assert np.array_equal(~np.ma.getmaskarray(drawn), (label[0, 7].T > 0).numpy())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_an_overlay_without_foreground_shows_the_middle(volume):
    image, label = volume
    figure = figures.overlay(image, {"prediction": label * 0}, spatial_dim=2)
    assert np.allclose(pixels(figure.axes[0]), image[0, :, :, 4].T)


def test_an_overlay_respects_the_spacing(volume):
    figure = figures.overlay(*[volume[0], {}], spatial_dim=0, spacing=(1.0, 2.0, 6.0))
    assert figure.axes[0].get_aspect() == 3.0


def test_an_overlay_draws_two_dimensional_rgb_images_and_heat_maps():
    image = torch.rand(3, 20, 30) * 255
    figure = figures.overlay(image, {}, heatmaps={"attention": torch.rand(1, 20, 30)})
    assert pixels(figure.axes[0]).shape == (30, 20, 3)
    assert pixels(figure.axes[1]).shape == (30, 20)


@pytest.mark.parametrize("title", ["$x", "$\\evil{$", "a_{b}^c"])
def test_a_title_is_drawn_as_it_is_and_not_as_a_formula(volume, tmp_path, title):
    figures.save(figures.overlay(volume[0], {}, title=title), tmp_path / "out" / "a.png")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_layers_on_another_grid_are_refused(volume):
    with pytest.raises(ValueError, match=r"'truth' has the spatial shape \(3, 3, 3\)"):
        figures.overlay(volume[0], {"truth": torch.zeros(1, 3, 3, 3)})
