# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_attn.errors import DataError
from monai_attn.transforms import CheckLabel, CheckLabelD, CheckLabeld, CheckLabelDict, label_values


def label(values: list[float], **meta: object) -> MetaTensor:
    """A label map of 4 x 4 voxels with some values."""
    voxels = torch.zeros(16)
    voxels[: len(values)] = torch.tensor(values)
    return MetaTensor(voxels.reshape(1, 4, 4), meta={"filename_or_obj": "seg.nii.gz", **meta})


def error(check: CheckLabel, img: object) -> DataError:
    with pytest.raises(DataError) as caught:
        check(img)
    assert caught.value.what == "seg.nii.gz"
    assert len(str(caught.value).splitlines()) == 3
    return caught.value


@pytest.mark.parametrize("values", [[1], [0, 1, 2], [2, 2], [2.0]])
def test_class_indices_pass_as_they_are(values, caplog):
    img = label(values)
    assert CheckLabel(2, range(3))(img) is img
    assert caplog.records == []


@pytest.mark.parametrize("value", [2, 255, 256, -1, 3000])
def test_another_value_is_refused_with_those_allowed_and_a_way_to_map_it(value):
    found = error(CheckLabel(2, [0, 1]), label([1, value]))
    assert found.problem == f"it has the values {value}, expected 0, 1"
    assert f"{{{value}: 1}}" in found.fix
    assert "MapLabelValue" in found.fix


def test_many_other_values_are_shortened():
    assert error(CheckLabel(2, [0, 1]), label(list(range(12)))).problem == (
        "it has the values 2, 3, 4, 5, 6 …, expected 0, 1"
    )


@pytest.mark.parametrize("values", [[0.996], [1, 0.5], [-0.25]])
def test_broken_numbers_are_refused_though_they_may_be_close_to_a_class(values):
    found = error(CheckLabel(2, [0, 1]), label(values))
    assert f"{values[-1]:g}, expected 0, 1" in found.problem
    assert "integers" in found.fix
    assert "0.3" in error(CheckLabel(2), label([0.3])).problem


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("values", [None, [0, 1]])
def test_nan_and_infinity_are_refused(values, value):
    assert f"the values {value}" in error(CheckLabel(2, values), label([1, value])).problem


def test_an_image_in_place_of_a_label_is_recognised():
    img = MetaTensor(torch.arange(400.0).reshape(1, 20, 20) - 100, meta={"filename_or_obj": "seg.nii.gz"})
    found = error(CheckLabel(2, [0, 1]), img)
    assert "it looks like an image" in found.problem
    assert "swapped" in found.fix


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2, 4, 4), "2 channels or volumes (one-hot?)"),
        ((1, 4, 4, 4), "3D, 1 channel (size 4 x 4 x 4), expected 2D, 1 channel"),
    ],
)
def test_other_dimensions_are_refused(shape, words):
    assert words in error(CheckLabel(2), MetaTensor(torch.zeros(shape), meta={"filename_or_obj": "seg.nii.gz"})).problem


def test_an_empty_label_is_told(caplog):
    CheckLabel(2, [0, 1])(label([0]))
    assert caplog.messages == ["seg.nii.gz: the label is empty"]


def test_a_label_without_orientation_is_refused_unless_one_is_assumed():
    img = MetaTensor(torch.ones(1, 4, 4, 4), meta={"filename_or_obj": "seg.nii.gz", "qform_code": 0, "sform_code": 0})
    assert "orientation" in error(CheckLabel(3), img).problem
    assert CheckLabel(3, assume_orientation="LPS")(img).affine.diagonal().tolist() == [-1, -1, 1, 1]


def test_dictionaries_are_checked_and_everything_else_is_kept():
    case = {"label": label([1]), "age": 40}
    assert CheckLabeld("label", 2, [0, 1])(case) == case
    with pytest.raises(DataError):
        CheckLabeld("label", 2, [0])(case)
    assert CheckLabeld("mask", 2, [0], allow_missing_keys=True)(case) == case
    assert CheckLabelD is CheckLabelDict is CheckLabeld


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 7.0, 255.0, 256.0]), min_size=1, max_size=30))
def test_the_values_are_those_of_numpy_on_either_way(values):
    assert label_values(torch.tensor([values])) == np.unique(values).tolist()
    assert label_values(np.array([values])) == np.unique(values).tolist()


def test_values_are_found_in_every_part_of_a_large_label():
    voxels = torch.zeros(1, 500, 500, dtype=torch.uint8)
    voxels[0, 499, 499] = 9
    assert label_values(voxels) == [0, 9]
    assert label_values(voxels - 0.5) == [-0.5, 8.5]
