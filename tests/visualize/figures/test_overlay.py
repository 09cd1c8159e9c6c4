# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from monai_attn.visualize import figures


@pytest.fixture
def image():
    return MetaTensor(torch.rand(1, 8, 9, 10), affine=torch.eye(4))


@pytest.fixture
def masks():
    truth, prediction = torch.zeros(1, 8, 9, 10), torch.zeros(1, 8, 9, 10)
    truth[0, 2:5, 3:6, 4:7] = 1
    prediction[0, 3:6, 3:6, 4:7] = 1
    prediction[0, 4, 4, 5] = 2
    return {"truth": truth, "prediction": prediction}


def drawn(axis) -> np.ndarray:
    return np.ma.filled(axis.images[-1].get_array() + 1.0, 0)


def pixels(axis) -> np.ndarray:
    return np.ma.getdata(axis.images[-1].get_array())


def letters(axis) -> str:
    return "".join(text.get_text() for text in axis.texts)


def test_an_overlay_shows_the_slice_with_the_most_of_the_first_mask(image, masks):
    masks["truth"][0, 4, 0, 0] = 1
    figure = figures.overlay(image.as_tensor(), masks, spatial_dim=0, title="case", class_names=["a", "b"])
    assert [axis.get_title() for axis in figure.axes] == ["image", "truth", "prediction"]
    assert np.allclose(pixels(figure.axes[0]), image[0, 4].T)
    assert np.array_equal(drawn(figure.axes[2]), masks["prediction"][0, 4].T)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]


def test_an_overlay_draws_two_dimensional_rgb_images_heat_maps_and_the_middle(image, masks):
    heatmaps = {"attention": torch.rand(1, 20, 30)}
    figure = figures.overlay(torch.rand(3, 20, 30) * 255, {}, heatmaps=heatmaps)
    assert pixels(figure.axes[0]).shape == (30, 20, 3)
    assert np.allclose(pixels(figure.axes[1]), heatmaps["attention"][0].T)
    heatmaps["scale, mm"] = heatmaps["attention"] * 0 + 4
    figure = figures.overlay(torch.rand(3, 20, 30), {}, heatmaps=heatmaps)
    assert [axis.images[-1].get_clim() for axis in figure.axes[1:3]] == [(0, 4), (0, 4)]
    assert len(figure.axes) == 4  # one scale of colors
    figure = figures.overlay(image.as_tensor(), {"prediction": masks["truth"] * 0}, spatial_dim=2)
    assert np.allclose(pixels(figure.axes[0]), image[0, :, :, 5].T)  # without foreground the middle is shown


@pytest.mark.filterwarnings("error")  # of MONAI, where a layer has metadata of its own
@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR"])
def test_letters_are_at_the_sides_that_they_name_however_the_volume_is_stored(axcodes):
    """A bright corner at the right, front and top of the patient, wherever the array has it."""
    corner = torch.zeros(1, 8, 8, 8)
    corner[0, -1, -1, -1] = 1
    image = Orientation(axcodes=axcodes, labels=None)(MetaTensor(corner, affine=torch.eye(4)))
    panel = figures.overlay(image, {"truth": image.int()}, spatial_dim=2).axes[0]
    ((y, x),) = np.argwhere(pixels(panel) == 1)
    across, up = panel.transAxes.inverted().transform(panel.transData.transform((x, y)))
    assert across < 0.1  # where the R is
    assert up > 0.9  # where the A is
    assert letters(panel) == "RLPA"


def test_rows_are_planes_and_columns_image_masks_and_difference(image, masks):
    figure = figures.three_planes(image, masks, title="case", class_names=["a", "b"])
    columns = ["truth", "prediction", "difference"]
    assert [axis.get_title() for axis in figure.axes] == [
        title for plane in ("axial", "coronal", "sagittal") for title in (f"image, {plane}", *columns)
    ]
    assert [letters(figure.axes[row]) for row in (0, 4, 8)] == ["RLPA", "RLIS", "APIS"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["a", "b", "false positive", "false negative", "another class"]
    assert "the patient's right on the left" in figure.get_suptitle()
    index = int((masks["truth"] > 0).sum(dim=(0, 1, 2)).argmax())
    truth, prediction = (masks[name][0, :, :, index].T.numpy() for name in ("truth", "prediction"))
    wrong = [(prediction > 0) & (truth == 0), (prediction == 0) & (truth > 0), prediction != truth]
    assert np.array_equal(drawn(figure.axes[3]), np.select(wrong, [1, 2, 3], 0))


def test_without_a_truth_or_metadata_there_is_no_difference_and_are_no_letters(image, masks):
    figure = figures.three_planes(image.as_tensor(), {"prediction": masks["prediction"]})
    assert len(figure.axes) == 6
    assert not figure.legends
    assert not any(axis.texts for axis in figure.axes)
    assert figure.get_suptitle() == ""


def test_planes_are_the_same_however_the_volume_is_stored(image, masks):
    turn = Orientation(axcodes="PIR", labels=None)
    turned = {name: turn(MetaTensor(mask, affine=image.affine)) for name, mask in masks.items()}
    for first, second in zip(figures.three_planes(image, masks).axes, figures.three_planes(turn(image), turned).axes):
        assert (letters(first), first.get_xlim()) == (letters(second), second.get_xlim())
        assert all(np.array_equal(a.get_array(), b.get_array()) for a, b in zip(first.images, second.images))


def test_layers_on_another_grid_and_pictures_in_place_of_volumes_are_refused(image):
    for draw in (figures.overlay, figures.three_planes):
        with pytest.raises(ValueError, match=r"'truth' has the spatial shape \(3, 3, 3\)"):
            draw(image, {"truth": torch.zeros(1, 3, 3, 3)})
    with pytest.raises(ValueError, match="image must be a volume"):
        figures.three_planes(torch.zeros(1, 8, 9), {})


def test_attention_grid_draws_spatial_maps_on_the_image_and_channel_maps_as_bars(image):
    maps = {"a.0.spatial.gate": torch.rand(1, 1, 5, 4), "a.0.channel.gate": torch.tensor([[[[0.3]], [[0.1]]]])}
    view = figures.slice_view(image, spatial_dim=0)
    figure = figures.attention_grid(image[:, 3].as_tensor(), maps, view=view)
    by_title = {axis.get_title(): axis for axis in figure.axes}
    assert pixels(by_title["a 1, spatial"]).shape == (10, 9)
    assert by_title["a 1, spatial"].images[-1].get_clim() == (0, 1)
    assert [bar.get_height() for bar in by_title["a 1, channel"].patches] == pytest.approx([0.1, 0.3])
    assert letters(figure.axes[0]) == "APIS"
    with pytest.raises(ValueError, match="capture one 2D image"):
        figures.attention_grid(torch.rand(1, 10, 8), {"gate": torch.rand(2, 1, 10, 8)})
