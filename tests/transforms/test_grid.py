# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd

from monai_attn.data.reader import PALETTE
from monai_attn.transforms.grid import SafeSpacingd, check_affine, check_pair, check_shape, files_of, fit_channels

from ..conftest import refused


def image(*shape: int, affine: np.ndarray | None = None, **meta: object) -> MetaTensor:
    affine = np.eye(4) if affine is None else affine
    return MetaTensor(torch.zeros(shape), affine=torch.as_tensor(affine), meta={"qform_code": 1, **meta})


def problem(check, *arguments: object) -> str:
    return refused("a.nii", check, *arguments).problem


def grid(spacing=(1, 1, 3), flip=(1, 1, 1), origin=(-20, 30, 10)) -> np.ndarray:
    """An oblique grid."""
    turn = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing) @ np.diag(flip)
    affine[:3, 3] = origin
    return affine


def test_an_image_is_named_by_its_files():
    assert files_of(np.zeros(3), "the image") == files_of(MetaTensor(torch.zeros(3)), "the image") == ["the image"]
    assert files_of(image(1, 2, filename_or_obj="a.nii"), "the image") == ["a.nii"]
    assert files_of(image(2, 2, filename_or_obj="a.nii", channel_files=["a.nii", "b.nii"]), "x") == ["a.nii", "b.nii"]


@pytest.mark.parametrize(
    ("spatial_dims", "channels", "shape", "words"),
    [
        (3, 1, (2, 4, 5, 6), "it is 4D (2 volumes), expected 3D, 1 channel"),
        (3, 4, (2, 4, 5, 6), "it is 3D, 2 channels, expected 3D, 4 channels"),
        (3, 1, (3, 4, 5, 6, 1), "it is 4D, 3 channels (size 4 x 5 x 6 x 1), expected 3D, 1 channel"),
        (2, 3, (1, 4, 5, 6), "it is 3D, 1 channel (size 4 x 5 x 6), expected 2D, 3 channels"),
        (2, 1, (3, 4, 5), "it is 2D, 3 channels, expected 2D, 1 channel"),
        (3, None, (1, 4, 5), "it is 2D, 1 channel (size 4 x 5), expected 3D"),
        (3, 1, (1, 1, 1, 1), "its size is 1 x 1 x 1: no more than one voxel"),
    ],
)
def test_other_dimensions_are_told_with_those_expected(spatial_dims, channels, shape, words):
    assert problem(check_shape, image(*shape), "a.nii", spatial_dims, channels) == words
    for voxels in (torch.ones(1, 4, 4, dtype=torch.complex64), np.ones((1, 4, 4), np.complex64)):
        assert "complex" in problem(check_shape, voxels, "a.nii", 2, 1)


@pytest.mark.parametrize("column", [[0, 0, 0], [1, 0, 0], [np.nan, 0, 1]])
def test_a_singular_affine_is_refused(column):
    affine = np.eye(4)
    affine[:3, 2] = column
    assert "singular" in problem(check_affine, image(1, 4, 5, 6, affine=affine), "a.nii")


def test_an_unknown_orientation_is_refused_unless_one_is_assumed(caplog):
    given = image(1, 4, 5, 6, affine=np.diag([-1.0, 2, 3, 1]), qform_code=0, sform_code=np.array(0))
    assert "orientation is unknown" in problem(check_affine, given, "a.nii")
    assumed = check_affine(given, "a.nii", "PIR")
    expected = [[0, 0, 3, 0], [-1, 0, 0, 0], [0, -2, 0, 0], [0, 0, 0, 1]]
    assert assumed.affine.tolist() == assumed.meta["original_affine"].tolist() == expected
    assert assumed.data_ptr() == given.data_ptr()
    assert given.affine[0, 0] == -1
    assert caplog.messages == [
        "a.nii: its orientation is unknown; assumed: spacing 1 x 2 x 3 mm, axes PIR, origin (0, 0, 0)"
    ]


def test_a_known_orientation_and_a_picture_are_left_alone():
    known = image(1, 4, 5, 6, sform_code=0)
    picture = image(1, 4, 5, affine=np.zeros((4, 4)), qform_code=0, sform_code=0)
    assert check_affine(known, "a.nii", "LPS") is known
    assert check_affine(picture, "a.png") is picture


@pytest.mark.parametrize(("tangent", "warnings"), [(0.005, 1), (1e-5, 0)])
def test_a_sheared_grid_is_told_with_the_file(tangent, warnings, caplog):
    affine = np.eye(4)
    affine[0, 1] = tangent
    check_affine(image(1, 4, 5, 6, affine=affine), "a.nii")
    assert [message.split(";")[0] for message in caplog.messages] == [
        "a.nii: its axes are not at right angles"
    ] * warnings


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
    pair = image(1, 4, 5, 6, affine=grid()), image(*shape, affine=grid(**changes))
    assert problem(check_pair, *pair, "image.nii", "a.nii").startswith(f"it does not lie on image.nii: {words}")


def test_a_label_on_its_image_passes_with_the_noise_of_headers():
    check_pair(
        image(4, 240, 240, 5, affine=grid()), image(1, 240, 240, 5, affine=grid() + 1e-5 * np.eye(4, k=1)), "", ""
    )
    check_pair(image(1, 4, 5, 6, affine=grid()), image(1, 4, 5, 6, affine=grid(origin=(-20, 30, 11.4))), "", "")


def test_of_pictures_and_plain_arrays_the_shape_is_compared_and_of_volumes_every_corner():
    check_pair(image(3, 4, 5), image(1, 4, 5, affine=5 * np.eye(4)), "", "")
    check_pair(np.zeros((1, 4, 5, 6)), torch.zeros(1, 4, 5, 6), "", "")
    pair = image(1, 200, 4, 4), image(1, 200, 4, 4, affine=np.diag([1.005, 1, 1, 1]))  # it adds up
    assert "1.0 voxels" in problem(check_pair, *pair, "image.nii", "a.nii")
    assert "(5, 4)" in problem(check_pair, np.zeros((1, 4, 5)), np.zeros((1, 5, 4)), "the image", "a.nii")


def test_a_picture_gets_the_channels_that_are_asked_for_and_keeps_them_otherwise():
    four = MetaTensor(torch.rand(4, 5, 6))
    assert fit_channels(four) is four
    assert torch.equal(fit_channels(four, 3), four[:3])
    indexed = MetaTensor(torch.ones(1, 5, 6), meta={PALETTE: torch.tensor([[0, 0, 0], [9, 8, 7]])})
    for _ in range(2):  # the image keeps its colors
        colors = fit_channels(indexed)
        assert colors[:, 0, 0].tolist() == [9, 8, 7]
        assert PALETTE not in colors.meta


KEYS = ["image", "label"]
OPTIONS = {"keys": KEYS, "pixdim": (1.0, 1.5, 2.0), "mode": ("bilinear", "nearest"), "dtype": torch.float32}


@pytest.fixture
def loaded() -> dict[str, MetaTensor]:
    """An image and a label of 2 x 3 x 1 mm."""
    affine = torch.diag(torch.tensor([2.0, 3.0, 1.0, 1.0], dtype=torch.float64))
    arrays = {"image": torch.rand(1, 6, 5, 8), "label": torch.randint(0, 3, (1, 6, 5, 8)).byte()}
    meta = {"filename_or_obj": "scan.nii.gz"}
    return {key: MetaTensor(array, affine=affine, meta=meta) for key, array in arrays.items()}


def assert_equal(output, expected, keys=KEYS):
    for key in keys:
        assert torch.equal(output[key].as_tensor(), expected[key].as_tensor())
        assert torch.equal(output[key].affine, expected[key].affine)
        assert len(output[key].applied_operations) == len(expected[key].applied_operations)


def test_stock_spacing_fails_where_a_path_stands_beside_the_image(loaded):
    # the day this fails, MONAI is fixed and SafeSpacingd can go
    with pytest.raises(AttributeError, match="'str' object has no attribute 'update'"):
        Spacingd(**OPTIONS)({**loaded, "image_path": "scan.nii.gz"})


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"image_path": Path("scan.nii.gz"), "label_path": "label.nii.gz", "image_mask": torch.ones(3)},
        {"image_names": ["a", "b"], "image_index": 3, "image_nothing": None, "label_": (1, 2), "name": "case"},
    ],
    ids=lambda extra: ",".join(extra),
)
def test_entries_that_are_no_images_are_kept_and_the_images_are_resampled(loaded, extra):
    data = {**loaded, **extra}
    output = SafeSpacingd(**OPTIONS)(data)
    assert output.keys() == {*KEYS, *extra}
    assert all(output[key] is extra[key] for key in extra)
    assert_equal(output, Spacingd(**OPTIONS)(loaded))
    assert all(data[key] is loaded[key] for key in KEYS)


def test_the_inverse_restores_the_shape_and_the_affine(loaded):
    transform = SafeSpacingd(**OPTIONS)
    forward = transform({**loaded, "image_path": "scan.nii.gz"})
    assert forward["image"].shape != loaded["image"].shape
    restored = transform.inverse(forward)
    assert restored["image_path"] == "scan.nii.gz"
    for key in KEYS:
        assert restored[key].shape == loaded[key].shape
        torch.testing.assert_close(restored[key].affine, loaded[key].affine)
        assert restored[key].applied_operations == []


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("spacing", "pixdim"),
    [((1.0, 1.0, 1.5), 2.0), ((2.0, 1.0, 3.0), 1.0), ((1.0, 1.0, 1.0), 1.0), ((0.8, 0.9), (1, 1))],
)
def test_the_inverse_is_that_of_stock_spacing_on_oblique_grids(spacing, pixdim, mode):
    dims = len(spacing)
    turned = torch.linalg.qr(torch.randn(dims, dims, dtype=torch.float64))[0]
    affine = torch.eye(dims + 1, dtype=torch.float64)
    affine[:dims, :dims], affine[:dims, -1] = turned * torch.tensor(spacing), torch.arange(dims)
    image = MetaTensor(torch.rand(2, 9, 8, 7)[(..., *[0] * (3 - dims))], affine=affine, meta={"name": "scan"})
    stock, ours = (kind("image", pixdim, mode=mode) for kind in (Spacingd, SafeSpacingd))
    forward = stock({"image": image})
    expected, found = stock.inverse(forward)["image"], ours.inverse(ours({"image": image}))["image"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), rtol=0, atol=1e-4)  # coordinates in float32
    torch.testing.assert_close(found.affine, expected.affine)
    assert found.applied_operations == expected.applied_operations == []
    assert found.meta["name"] == "scan"


def test_a_picture_returns_to_its_grid_as_by_monai():
    image = MetaTensor(torch.rand(1, 20, 30))
    ours, stock = (cls("image", pixdim=(2.0, 3.0)) for cls in (SafeSpacingd, Spacingd))
    found, expected = (step.inverse(step({"image": image.clone()}))["image"] for step in (ours, stock))
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), atol=1e-6, rtol=0)
    assert torch.equal(found.affine, expected.affine)
