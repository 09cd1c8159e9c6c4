# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_attn.transforms import CheckImaged

from ..conftest import refused


def image(*shape: int, **meta: object) -> MetaTensor:
    voxels = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    return MetaTensor(voxels, meta={"filename_or_obj": "a.nii", **meta})


def check(given, spatial_dims=3, **options):
    return CheckImaged("image", spatial_dims, **options)({"image": given})["image"]


def test_a_good_image_passes_as_it_is_with_all_other_entries(caplog):
    case = {"image": image(2, 4, 5, 6), "age": 40}
    checked = CheckImaged("image", 3, 2)(case)
    assert checked == case
    assert checked["image"] is case["image"]
    assert caplog.records == []


@pytest.mark.parametrize("given", [np.zeros((1, 4, 5)), torch.zeros(1, 4, 5), MetaTensor(torch.zeros(1, 4, 5))])
def test_an_image_without_a_file_is_called_the_image(given):
    assert refused("the image", check, given).problem == "it is 2D, 1 channel (size 4 x 5), expected 3D"


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_voxels_that_are_no_numbers_are_counted_and_refused_or_taken_as_0(bad, caplog):
    given = image(1, 4, 5, 6)
    given[0, 1, :2] = bad
    assert refused("a.nii", check, given).problem == "12 of its 120 voxels are NaN or infinite"
    zeroed = check(given, nonfinite="zero")
    assert torch.equal(zeroed.as_tensor(), given.as_tensor().nan_to_num(0, 0, 0))
    assert zeroed.meta["filename_or_obj"] == "a.nii"
    assert not given[0, 1, 0, 0].isfinite()
    assert caplog.messages == ["a.nii: 12 of its 120 voxels are NaN or infinite; taken as 0"]


@pytest.mark.parametrize("nonfinite", ["error", "zero"])
def test_an_image_of_nothing_but_nan_is_refused_in_any_case(nonfinite):
    empty = image(1, 4, 5, 6) * torch.nan
    assert "120 of its 120" in refused("a.nii", check, empty, nonfinite=nonfinite).problem


def test_hounsfield_units_are_refused_where_the_window_begins_at_0():
    given = image(1, 4, 5, 6) - 100
    given[0, 3] = torch.nan  # is taken as 0, and the rest is looked at
    assert "begin at -100" in refused("a.nii", check, given, window=[0, 255], nonfinite="zero").problem
    given = image(1, 4, 5, 6) - 100
    assert "begin at -100" in refused("a.nii", check, given, window=[0, 255]).problem
    check(given, window=[-1000, 400])
    check(given + 100, window=[0, 255])


def test_the_file_of_the_channel_is_named(caplog):
    given = image(2, 4, 5, 6, channel_files=["t1.nii", "flair.nii"])
    given[1] = 3
    check(given)
    assert caplog.messages == ["flair.nii: it has no contrast: every voxel is 3"]
    given[1, 0] = torch.nan
    refused("flair.nii", check, given)
    del given.meta["channel_files"]
    refused("a.nii (channel 1)", check, given)


def test_an_image_without_contrast_is_told_or_refused(caplog):
    given = image(1, 4, 5, 6) * 0 + 7.5
    assert check(given) is given
    assert caplog.messages == ["a.nii: it has no contrast: every voxel is 7.5"]
    assert refused("a.nii", check, given, constant="error").problem == "it has no contrast: every voxel is 7.5"
    picture = image(3, 4, 5)
    picture[2] = 0
    check(picture, spatial_dims=2, channels=3, constant="error")  # one flat channel is no error
    assert caplog.messages[1:] == ["a.nii (channel 2): it has no contrast: every voxel is 0"]


@pytest.mark.parametrize("options", [{"nonfinite": "ignore"}, {"constant": "pass"}])
def test_other_options_are_refused(options):
    with pytest.raises(ValueError, match=r"ignore|pass"):
        CheckImaged("image", 3, **options)
