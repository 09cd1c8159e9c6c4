# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Spacingd

from monai_attn.transforms import SafeSpacingD, SafeSpacingd, SafeSpacingDict

KEYS = ["image", "label"]
OPTIONS = {"keys": KEYS, "pixdim": (1.0, 1.5, 2.0), "mode": ("bilinear", "nearest")}


@pytest.fixture
def loaded(tmp_path: Path) -> dict[str, MetaTensor]:
    """An image and a label of 2 x 3 x 1 mm, loaded from NIfTI files."""
    generator = np.random.default_rng(0)
    affine = np.diag([2.0, 3.0, 1.0, 1.0])
    arrays = {
        "image": generator.random((6, 5, 8), dtype=np.float32),
        "label": generator.integers(0, 3, (6, 5, 8)).astype(np.uint8),
    }
    for key, array in arrays.items():
        nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / f"{key}.nii.gz")
    load = Compose([LoadImaged(KEYS), EnsureChannelFirstd(KEYS)])
    return load({key: tmp_path / f"{key}.nii.gz" for key in KEYS})


def test_stock_spacing_fails_where_a_path_stands_beside_the_image(loaded):
    # the day this fails, MONAI is fixed and SafeSpacingd can go
    with pytest.raises(AttributeError, match="'str' object has no attribute 'update'"):
        Spacingd(**OPTIONS)({**loaded, "image_path": "scan.nii.gz"})


@pytest.mark.parametrize(
    "extra",
    [
        {"image_path": "scan.nii.gz"},
        {"image_path": Path("scan.nii.gz"), "label_path": "label.nii.gz"},
        {"image_names": ["a", "b"], "image_index": 3, "image_nothing": None, "label_": (1, 2)},
        {"name": "case", 5: "a key that is no string"} | {"image_weight": 0.5},
    ],
    ids=lambda extra: ",".join(map(str, extra)),
)
def test_entries_that_are_no_images_are_kept_and_the_images_are_resampled(loaded, extra):
    extra = {key: value for key, value in extra.items() if isinstance(key, str)}
    output = SafeSpacingd(**OPTIONS)({**loaded, **extra})
    expected = Spacingd(**OPTIONS)(loaded)
    assert output.keys() == {*KEYS, *extra}
    assert {key: output[key] for key in extra} == extra
    for key in KEYS:
        assert torch.equal(output[key].as_tensor(), expected[key].as_tensor())
        assert torch.equal(output[key].affine, expected[key].affine)


@pytest.mark.parametrize(
    "options",
    [
        {"keys": "image", "pixdim": 1.0},
        {"keys": KEYS, "pixdim": (1.0, 1.0, 1.0), "mode": ("bilinear", "nearest")},
        {"keys": KEYS, "pixdim": (4.0, -1.0, 1.0), "mode": "nearest", "diagonal": True},
        {"keys": KEYS, "pixdim": 1.3, "padding_mode": "zeros", "align_corners": True, "scale_extent": True},
    ],
    ids=str,
)
def test_without_such_entries_it_equals_spacing_of_monai(loaded, options):
    output, expected = SafeSpacingd(**options)(loaded), Spacingd(**options)(loaded)
    assert list(output) == list(expected)
    for key in KEYS:
        assert torch.equal(output[key].as_tensor(), expected[key].as_tensor())
        assert torch.equal(output[key].affine, expected[key].affine)
        assert len(output[key].applied_operations) == len(expected[key].applied_operations)


def test_a_dictionary_of_metadata_is_updated_as_by_monai(loaded):
    output = SafeSpacingd(**OPTIONS)({**loaded, "image_meta_dict": {"mine": 1}, "image_path": "scan.nii.gz"})
    assert output["image_meta_dict"]["mine"] == 1
    assert output["image_meta_dict"].keys() >= output["image"].meta.keys()


def test_an_array_is_resampled_as_by_monai():
    data = {"image": np.random.default_rng(0).random((1, 6, 5, 8), dtype=np.float32)}
    options = {"keys": "image", "pixdim": 2.0}
    expected = Spacingd(**options)(data)["image"]
    output = SafeSpacingd(**options)({**data, "image_path": "scan.nii.gz"})["image"]
    assert torch.equal(output.as_tensor(), expected.as_tensor())


def test_a_tensor_whose_key_begins_like_the_image_is_kept(loaded):
    mask = torch.ones(3)
    output = SafeSpacingd(**OPTIONS)({**loaded, "image_mask": mask})
    assert output["image_mask"] is mask


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


def test_lazy_resampling_only_notes_the_operation(loaded):
    output = SafeSpacingd(**OPTIONS)({**loaded, "image_path": "scan.nii.gz"}, lazy=True)
    assert output["image"].shape == loaded["image"].shape
    assert len(output["image"].pending_operations) == 1
    assert output["image_path"] == "scan.nii.gz"


def test_the_input_is_not_changed(loaded):
    data = {**loaded, "image_path": "scan.nii.gz"}
    before = {key: value.clone() for key, value in loaded.items()}
    SafeSpacingd(**OPTIONS)(data)
    assert list(data) == [*KEYS, "image_path"]
    assert all(torch.equal(data[key], before[key]) for key in KEYS)


def test_a_missing_key_raises_unless_it_is_allowed(loaded):
    data = {"image": loaded["image"], "image_path": "scan.nii.gz"}
    with pytest.raises(KeyError, match="label"):
        SafeSpacingd(**OPTIONS)(data)
    output = SafeSpacingd(**OPTIONS, allow_missing_keys=True)(data)
    assert output.keys() == {"image", "image_path"}


def test_it_works_in_a_cached_data_loader(loaded):
    dataset = CacheDataset([{**loaded, "image_path": "scan.nii.gz"}] * 2, SafeSpacingd(**OPTIONS), progress=False)
    (batch,) = DataLoader(dataset, batch_size=2)
    assert batch["image_path"] == ["scan.nii.gz"] * 2
    assert batch["image"].shape == (2, *Spacingd(**OPTIONS)(loaded)["image"].shape)


def test_the_three_names_are_one_class():
    assert SafeSpacingD is SafeSpacingDict is SafeSpacingd
