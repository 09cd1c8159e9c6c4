# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_attn.errors import InputError
from monai_attn.transforms import CheckLabeld, label_values

from ..conftest import refused


def case(values: list[float], shape: tuple[int, ...] = (1, 4, 4), **meta: object) -> dict[str, torch.Tensor]:
    """A label map with some values, and its image."""
    voxels = torch.zeros(shape).flatten()
    voxels[: len(values)] = torch.tensor(values)
    label = MetaTensor(voxels.reshape(shape), meta={"filename_or_obj": "seg.nii", **meta})
    return {"image": torch.rand(3, *shape[1:]), "label": label}


def error(item: dict[str, torch.Tensor], **options: object) -> InputError:
    return refused("seg.nii", CheckLabeld("label", **options), item)


@pytest.mark.parametrize("values", [[1], [0, 1, 2], [2.0]])
def test_class_indices_pass_as_they_are_with_all_other_entries(values, caplog):
    item = {**case(values), "age": 40}
    checked = CheckLabeld("label", values=range(3))(item)
    assert checked == item
    assert checked["label"] is item["label"]
    assert caplog.records == []
    CheckLabeld("label")(case([0]))
    assert caplog.messages == ["seg.nii: the label is empty"]


@pytest.mark.parametrize("value", [2, 256, -1])
def test_another_value_is_refused_with_those_allowed_and_a_way_to_map_it(value):
    found = error(case([1, value]), values=[0, 1])
    assert found.problem == f"it has the values {value}, expected 0, 1"
    assert f'--label_map "{{{value}: 1}}"' in found.fix
    mapped = CheckLabeld("label", values=[0, 1], label_map={str(value): 1})(case([1, value]))["label"]
    assert (mapped.unique().tolist(), mapped.dtype) == ([0, 1], torch.float32)


@pytest.mark.parametrize("values", [None, [0, 1]])
def test_broken_numbers_are_refused_though_they_may_be_close_to_a_class(values):
    found = error(case([1, 0.996, -0.25]), values=values)
    assert found.problem == f"it has the values -0.25, 0.996, expected {'0, 1' if values else 'whole numbers'}"
    assert "integers" in found.fix
    for value in (float("nan"), float("inf")):
        assert f"the values {value}" in error(case([1, value]), values=values).problem


def test_an_image_in_place_of_a_label_is_recognized():
    found = error(case(list(range(-100, 300)), (1, 20, 20)), values=[0, 1])
    assert "it looks like an image" in found.problem
    assert "swapped" in found.fix


def test_other_dimensions_and_another_shape_than_that_of_the_image_are_refused():
    item = {"scan": torch.rand(1, 4, 5), "label": case([1])["label"]}
    assert error(item, image_key="scan").problem.startswith("it does not lie on the image: its shape (4, 4)")
    assert "2 channels or volumes (one-hot?)" in error(case([1], (2, 4, 4))).problem
    item = {**case([1], (1, 4, 4, 4)), "image": torch.rand(1, 4, 4)}
    assert "3D, 1 channel (size 4 x 4 x 4), expected 2D, 1 channel" in error(item).problem


def test_a_label_without_orientation_is_refused_unless_one_is_assumed():
    item = case([1], (1, 4, 4, 4), qform_code=0, sform_code=0)
    assert "orientation" in error(item).problem
    checked = CheckLabeld("label", assume_orientation="LPS")(item)
    assert checked["label"].affine.diagonal().tolist() == [-1, -1, 1, 1]


@settings(deadline=None, max_examples=15)
@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 7.0, 255.0, 256.0]), min_size=1, max_size=30))
def test_the_values_are_those_of_numpy(values):
    assert label_values(torch.tensor([values])) == label_values(np.array([values])) == np.unique(values).tolist()
