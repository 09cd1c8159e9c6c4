# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

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


def test_the_best_slice_is_the_one_with_the_most_foreground(volume):
    assert figures.best_slice(volume[1], spatial_dim=0) == 7


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


def test_attention_grid_draws_spatial_maps_on_the_image_and_channel_maps_as_bars():
    maps = {"a.spatial.gate": torch.rand(1, 1, 5, 4), "a.channel.gate": torch.tensor([[[[0.3]], [[0.1]]]])}
    figure = figures.attention_grid(torch.rand(1, 10, 8), maps)
    by_title = {axis.get_title(): axis for axis in figure.axes}
    assert pixels(by_title["a.spatial"]).shape == (8, 10)
    assert [bar.get_height() for bar in by_title["a.channel"].patches] == pytest.approx([0.1, 0.3])


def test_attention_grid_wants_the_maps_of_one_image():
    with pytest.raises(ValueError, match="capture one 2D image"):
        figures.attention_grid(torch.rand(1, 10, 8), {"gate": torch.rand(2, 1, 10, 8)})


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


def test_figures_are_saved_with_the_same_bytes_each_time(volume, tmp_path):
    paths = [
        figures.save(figures.overlay(volume[0], {"truth": volume[1]}, title="case"), tmp_path / name / "f.png")
        for name in ("a", "b")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size < 300_000


def test_figures_fit_their_contents(volume):
    figure = figures.overlay(volume[0], {"truth": volume[1]}, title="case")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert np.asarray(canvas.buffer_rgba())[..., :3].std() > 0
