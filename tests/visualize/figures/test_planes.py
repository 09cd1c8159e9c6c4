# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from monai_attn.visualize.figures import save, three_planes


@pytest.fixture
def masks():
    truth, prediction = torch.zeros(1, 8, 9, 10), torch.zeros(1, 8, 9, 10)
    truth[0, 2:5, 3:6, 4:7] = 1
    prediction[0, 3:6, 3:6, 4:7] = 1
    prediction[0, 4, 4, 5] = 2
    return {"truth": truth, "prediction": prediction}


@pytest.fixture
def image():
    return MetaTensor(torch.rand(1, 8, 9, 10), affine=torch.eye(4))


def drawn(axis):
    return np.ma.filled(axis.images[-1].get_array() + 1.0, 0)


def test_rows_are_planes_and_columns_image_masks_and_difference(image, masks):
    figure = three_planes(image, masks, title="case", class_names=["a", "b"])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [
        title for plane in ("axial", "coronal", "sagittal")
        for title in (f"image, {plane}", "truth", "prediction", "difference")
    ]  # fmt: skip
    assert [[text.get_text() for text in figure.axes[row].texts] for row in (0, 4, 8)] == [
        ["R", "L", "P", "A"],
        ["R", "L", "I", "S"],
        ["A", "P", "I", "S"],
    ]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["a", "b", "false positive", "false negative", "another class"]
    assert "the patient's right on the left" in figure.get_suptitle()


def test_the_difference_tells_what_is_wrong(image, masks):
    difference = drawn(three_planes(image, masks).axes[3])  # axial: picture rows are y
    index = int((masks["truth"] > 0).sum(dim=(0, 1, 2)).argmax())
    truth, prediction = (masks[name][0, :, :, index].T.numpy() for name in ("truth", "prediction"))
    expected = np.select(
        [(prediction > 0) & (truth == 0), (prediction == 0) & (truth > 0), prediction != truth], [1, 2, 3], 0
    )
    assert np.array_equal(difference, expected)
    assert {0, 1, 2} <= set(difference.flat)


def test_without_a_truth_there_is_no_difference(image, masks):
    figure = three_planes(image, {"prediction": masks["prediction"]})
    assert len(figure.axes) == 6
    assert not figure.legends


@pytest.mark.parametrize("axcodes", ["LPS", "PIR", "SAL"])
def test_the_picture_is_the_same_however_the_volume_is_stored(image, masks, tmp_path, axcodes):
    turn = Orientation(axcodes=axcodes, labels=None)
    turned = {name: turn(MetaTensor(mask, affine=image.affine)) for name, mask in masks.items()}
    first = save(three_planes(image, masks, title="case"), tmp_path / "a.png")
    second = save(three_planes(turn(image), turned, title="case"), tmp_path / "b.png")
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 300_000


def test_a_volume_without_metadata_has_no_letters(masks):
    figure = three_planes(torch.rand(1, 8, 9, 10), masks)
    assert not any(axis.texts for axis in figure.axes)
    assert figure.get_suptitle() == ""


def test_voxels_have_their_sides(masks):
    image = MetaTensor(torch.rand(1, 8, 9, 10), affine=torch.diag(torch.tensor([1.0, 2, 6, 1])))
    aspects = [three_planes(image, masks).axes[row].get_aspect() for row in (0, 4, 8)]
    assert aspects == pytest.approx([2, 6, 3])


def test_only_volumes_on_the_grid_of_their_masks_are_drawn(image, masks):
    with pytest.raises(ValueError, match="image must be a volume"):
        three_planes(torch.zeros(1, 8, 9), {})
    with pytest.raises(ValueError, match=r"'truth' has the spatial shape \(3, 3, 3\)"):
        three_planes(image, {**masks, "truth": torch.zeros(1, 3, 3, 3)})
