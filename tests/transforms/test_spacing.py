# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd

from monai_attn.transforms import SafeSpacingd

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
