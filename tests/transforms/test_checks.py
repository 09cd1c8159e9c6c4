# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose

from monai_attn.errors import DataError
from monai_attn.transforms import (
    CheckPair,
    CheckPairD,
    CheckPaird,
    CheckPairDict,
    CheckVolume,
    CheckVolumeD,
    CheckVolumed,
    CheckVolumeDict,
)

NIFTI = {"qform_code": 1, "sform_code": 1}


def image(*shape: int, affine: np.ndarray | None = None, name: str = "a.nii.gz", **meta: object) -> MetaTensor:
    affine = np.eye(4) if affine is None else affine
    voxels = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    return MetaTensor(voxels, affine=torch.as_tensor(affine), meta={"filename_or_obj": name, **NIFTI, **meta})


def problem(check, *arguments: object, name: str = "a.nii.gz") -> str:
    with pytest.raises(DataError) as caught:
        check(*arguments)
    assert caught.value.what == name
    assert caught.value.fix
    assert len(str(caught.value).splitlines()) == 3
    return caught.value.problem


def shear(tangent: float) -> np.ndarray:
    return np.array([[1, tangent, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


# --- CheckVolume: the grid ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spatial_dims", "channels", "shape"),
    [
        (1, 1, (1, 9)),
        (2, 3, (3, 4, 5)),
        (3, 1, (1, 4, 5, 6)),
        (3, 4, (4, 4, 5, 6)),
        (3, None, (7, 4, 5, 6)),
        (3, 1, (1, 4, 5, 1)),
    ],
)
def test_what_is_expected_passes_as_it_is_without_a_copy(spatial_dims, channels, shape, caplog):
    given = image(*shape)
    assert CheckVolume(spatial_dims, channels)(given) is given
    assert caplog.records == []


@pytest.mark.parametrize(
    ("spatial_dims", "channels", "shape", "words"),
    [
        (3, 1, (2, 4, 5, 6), "it is 4D (2 volumes), expected 3D, 1 channel"),
        (3, 4, (2, 4, 5, 6), "it is 3D, 2 channels, expected 3D, 4 channels"),
        (3, 1, (3, 4, 5, 6, 1), "it is 4D, 3 channels (size 4 x 5 x 6 x 1), expected 3D, 1 channel"),
        (3, 1, (1, 4, 5), "it is 2D, 1 channel (size 4 x 5), expected 3D, 1 channel"),
        (2, 3, (1, 4, 5, 6), "it is 3D, 1 channel (size 4 x 5 x 6), expected 2D, 3 channels"),
        (2, 3, (1, 4, 5), "it is 2D, 1 channel, expected 2D, 3 channels"),
        (2, 1, (3, 4, 5), "it is 2D, 3 channels, expected 2D, 1 channel"),
        (3, None, (1, 4, 5), "it is 2D, 1 channel (size 4 x 5), expected 3D"),
        (3, 1, (1, 1, 1, 1), "its size is 1 x 1 x 1: no more than one voxel"),
    ],
)
def test_other_dimensions_are_told_with_those_expected(spatial_dims, channels, shape, words):
    assert problem(CheckVolume(spatial_dims, channels), image(*shape)) == words


def test_complex_numbers_are_refused():
    assert "complex" in problem(CheckVolume(2), torch.ones(1, 4, 4, dtype=torch.complex64), name="the image")
    assert "complex" in problem(CheckVolume(2), np.ones((1, 4, 4), np.complex64), name="the image")


@pytest.mark.parametrize("column", [[0, 0, 0], [1, 0, 0], [np.nan, 0, 1]])
def test_a_singular_affine_is_refused(column):
    affine = np.eye(4)
    affine[:3, 2] = column
    assert "singular" in problem(CheckVolume(3, 1), image(1, 4, 5, 6, affine=affine))


def test_an_affine_of_small_voxels_is_not_singular():
    CheckVolume(3, 1)(image(1, 4, 5, 6, affine=np.diag([1e-4, 1e-4, 1e-4, 1])))


def test_an_unknown_orientation_is_refused_unless_one_is_assumed(caplog):
    given = image(1, 4, 5, 6, affine=np.diag([-1.0, 2, 3, 1]), qform_code=0, sform_code=np.array(0))
    assert "orientation is unknown" in problem(CheckVolume(3, 1), given)
    assumed = CheckVolume(3, 1, assume_orientation="PIR")(given)
    expected = [[0, 0, 3, 0], [-1, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]]
    assert assumed.affine.tolist() == expected
    assert np.array_equal(assumed.meta["original_affine"], expected)
    assert assumed.meta["filename_or_obj"] == "a.nii.gz"
    assert assumed.data_ptr() == given.data_ptr()
    assert given.affine[0, 0] == -1
    assert "a.nii.gz: its orientation is unknown; assumed: spacing 1 x 2 x 3 mm, axes PIR" in caplog.text


@pytest.mark.parametrize("codes", [{"qform_code": 0}, {"sform_code": 0}])
def test_a_known_orientation_is_not_assumed_otherwise(codes):
    given = image(1, 4, 5, 6, **codes)
    assert CheckVolume(3, 1, assume_orientation="LPS")(given) is given


def test_pictures_need_no_orientation():
    CheckVolume(2, 1)(image(1, 4, 5, affine=np.zeros((4, 4)), qform_code=0, sform_code=0))


@pytest.mark.parametrize(("tangent", "warnings"), [(0.1, 1), (0.005, 1), (1e-5, 0)])
def test_a_sheared_grid_is_told_with_the_file(tangent, warnings, caplog):
    CheckVolume(3, 1)(image(1, 4, 5, 6, affine=shear(tangent)))
    assert len(caplog.records) == warnings
    assert all("a.nii.gz: its axes are not at right angles" in record.message for record in caplog.records)


# --- CheckVolume: the voxels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_voxels_that_are_no_numbers_are_counted_and_refused_or_taken_as_0(bad, caplog):
    given = image(1, 4, 5, 6)
    given[0, 1, :2] = bad
    assert problem(CheckVolume(3, 1), given) == "12 of its 120 voxels are NaN or infinite"
    zeroed = CheckVolume(3, 1, nonfinite="zero")(given)
    assert torch.equal(zeroed.as_tensor(), given.as_tensor().nan_to_num(0, 0, 0))
    assert zeroed.meta["filename_or_obj"] == "a.nii.gz"
    assert not given[0, 1, 0, 0].isfinite()
    assert "a.nii.gz: 12 of its 120 voxels are NaN or infinite; taken as 0" in caplog.text


@pytest.mark.parametrize("nonfinite", ["error", "zero"])
def test_an_image_of_nothing_but_nan_is_refused_in_any_case(nonfinite):
    given = image(1, 4, 5, 6) * torch.nan
    assert "120 of its 120" in problem(CheckVolume(3, 1, nonfinite=nonfinite), given)


def test_the_file_of_the_channel_is_named(caplog):
    given = image(2, 4, 5, 6)
    given[1, 0] = torch.nan
    check = CheckVolume(3, 2)
    problem(check, given, ["t1.nii", "flair.nii"], name="flair.nii")
    problem(check, given, ["both.nii"], name="both.nii (channel 1)")
    given[1] = 3
    check(given, ["t1.nii", "flair.nii"])
    assert "flair.nii: it has no contrast: every voxel is 3" in caplog.text


def test_an_image_without_contrast_is_told_or_refused(caplog):
    given = image(1, 4, 5, 6) * 0 + 7.5
    assert CheckVolume(3, 1)(given) is given
    assert caplog.messages == ["a.nii.gz: it has no contrast: every voxel is 7.5"]
    assert problem(CheckVolume(3, 1, constant="error"), given) == "it has no contrast: every voxel is 7.5"


def test_one_flat_channel_of_a_picture_is_no_error_in_training(caplog):
    given = image(3, 4, 5)
    given[2] = 0
    CheckVolume(2, 3, constant="error")(given)
    assert caplog.messages == ["a.nii.gz (channel 2): it has no contrast: every voxel is 0"]


@pytest.mark.parametrize("options", [{"nonfinite": "ignore"}, {"constant": "pass"}])
def test_other_options_are_refused(options):
    with pytest.raises(ValueError, match="ignore" if "nonfinite" in options else "pass"):
        CheckVolume(3, 1, **options)


# --- CheckPair ---------------------------------------------------------------------------------------------------


def moved(**changes: object) -> np.ndarray:
    """An oblique grid, changed."""
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(changes.get("spacing", (1, 1, 3))) @ np.diag(changes.get("flip", (1, 1, 1)))
    affine[:3, 3] = changes.get("origin", (-20, 30, 10))
    return affine


@pytest.mark.parametrize(
    ("shape", "changes", "words"),
    [
        ((1, 4, 5, 7), {}, "its shape (4, 5, 7) is not the shape (4, 5, 6)"),
        ((1, 4, 5, 6), {"spacing": (1, 1, 2)}, "its spacing differs, by up to 1.7 voxels: spacing 1 x 1 x 2 mm"),
        ((1, 4, 5, 6), {"flip": (-1, 1, 1)}, "its direction differs, by up to 6.0 voxels"),
        ((1, 4, 5, 6), {"origin": (-20, 30, 40)}, "its origin differs, by up to 10.0 voxels"),
        ((1, 4, 5, 6), {"origin": (-20, 30, 11.6)}, "its origin differs, by up to 0.5 voxels"),
    ],
)
def test_a_label_beside_its_image_is_refused_and_both_are_named(shape, changes, words):
    pair = image(1, 4, 5, 6, affine=moved()), image(*shape, affine=moved(**changes), name="b.nii.gz")
    found = problem(CheckPair(), *pair, name="b.nii.gz")
    assert found.startswith(f"it does not lie on a.nii.gz: {words}")


def test_a_label_on_its_image_passes_with_the_noise_of_headers():
    affine = moved() + 1e-5
    affine[3] = [0, 0, 0, 1]
    pair = image(4, 240, 240, 5, affine=moved()), image(1, 240, 240, 5, affine=affine)
    assert CheckPair()(*pair) == pair
    CheckPair()(pair[0], image(1, 240, 240, 5, affine=moved(origin=(-20, 30, 11.4))))


def test_a_spacing_that_adds_up_to_more_than_half_a_voxel_is_refused():
    pair = image(1, 200, 4, 4), image(1, 200, 4, 4, affine=np.diag([1.005, 1, 1, 1]))
    assert "1.0 voxels" in problem(CheckPair(), *pair)


def test_of_pictures_and_plain_arrays_the_shape_is_compared():
    CheckPair()(image(3, 4, 5), image(1, 4, 5, affine=5 * np.eye(4)))
    CheckPair()(np.zeros((1, 4, 5, 6)), torch.zeros(1, 4, 5, 6))
    assert "(5, 4)" in problem(CheckPair(), np.zeros((1, 4, 5)), np.zeros((1, 5, 4)), name="the label")


# --- dictionaries ------------------------------------------------------------------------------------------------


def test_dictionaries_are_checked_and_everything_else_is_kept():
    case = {"image": image(1, 4, 5, 6), "label": image(1, 4, 5, 6, name="b.nii.gz"), "age": 40}
    guard = Compose([CheckVolumed("image", 3, 1, constant="error"), CheckPaird(["image", "label"])])
    assert guard(case) == case
    wrong = {**case, "label": image(1, 4, 5, 7, name="b.nii.gz")}
    problem(CheckPaird(["image", "label"]), wrong, name="b.nii.gz")
    problem(CheckVolumed("image", 3, 2), case)
    zeroed = CheckVolumed("image", 3, 1, nonfinite="zero")({"image": case["image"].log()})["image"]
    assert zeroed[0, 0, 0, :2].tolist() == [0, 0]
    with pytest.raises(KeyError):
        CheckVolumed("none", 3)(case)
    assert CheckVolumed("none", 3, allow_missing_keys=True)(case) == case
    assert CheckPaird(["image", "mask"], allow_missing_keys=True)(case) == case


def test_dictionary_transforms_have_the_names_that_monai_gives():
    assert CheckVolumeD is CheckVolumeDict is CheckVolumed
    assert CheckPairD is CheckPairDict is CheckPaird
