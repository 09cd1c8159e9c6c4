# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import AsDiscreted, Compose, EnsureTyped, Invertd, Orientationd, Resized, SpatialPadd
from monai.utils import convert_to_dst_type
from torch.utils._python_dispatch import TorchDispatchMode

from monai_attn.transforms import InvertArgmaxd, SafeSpacingd


class Largest(TorchDispatchMode):
    """Notes the number of elements of every tensor that an operation makes."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.sizes.append(tensor.numel())
        return result


def prepared(shape, spacing=None, resize=None):
    """An image in PIR orientation, prepared, and the preprocessing."""
    affine = torch.zeros(4, 4, dtype=torch.float64)
    affine[[1, 2, 0, 3], [0, 1, 2, 3]] = torch.tensor([-1.1, -0.9, 1.3, 1.0], dtype=torch.float64)
    steps = [Orientationd("image", "RAS", labels=None)] if len(shape) == 3 else []
    steps += [SafeSpacingd("image", spacing)] if spacing else []
    steps += [Resized("image", resize, mode="bilinear")] if resize else []
    preprocessing = Compose([*steps, SpatialPadd("image", [side + 3 for side in shape]), EnsureTyped("image")])
    image = MetaTensor(torch.rand(1, *shape), affine=affine if len(shape) == 3 else torch.eye(3, dtype=torch.float64))
    return preprocessing({"image": image}), preprocessing


def stock(preprocessing):
    inverse = Invertd("pred", preprocessing, "image", nearest_interp=False, to_tensor=True)
    return Compose([inverse, AsDiscreted("pred", argmax=True)])


def assert_equal(item, preprocessing):
    expected, found = (
        step(dict(item))["pred"] for step in (stock(preprocessing), InvertArgmaxd("pred", preprocessing))
    )
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert found.dtype == expected.dtype
    assert torch.equal(found.affine, expected.affine)
    assert found.applied_operations == expected.applied_operations
    assert set(found.meta) == set(expected.meta)
    return found


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0), (2.0, 0.7, 1.5)])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_a_label_map_is_that_of_invertd_and_asdiscreted_bit_by_bit(spacing, classes):
    item, preprocessing = prepared((21, 8, 10), spacing)
    scores = torch.randn(classes, *item["image"].shape[1:]).mul(4).round()  # with many ties
    scores[classes // 2, :9, 3:] = float("nan")
    scores[0, 10:12] = float("inf")
    item["pred"] = MetaTensor(scores, meta=item["image"].meta)
    before = item["pred"].clone()
    found = assert_equal(item, preprocessing)
    assert found.shape == (1, 21, 8, 10)
    assert torch.equal(item["pred"].nan_to_num(), before.nan_to_num())


@settings(max_examples=15, deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=2, max_size=3), classes=st.integers(1, 4), half=st.booleans())
def test_it_is_so_for_any_shape(shape, classes, half):
    item, preprocessing = prepared(tuple(shape))
    scores = torch.randint(0, 3, (classes, *item["image"].shape[1:])).to(torch.float16 if half else torch.float32)
    item["pred"] = MetaTensor(scores, meta=item["image"].meta)
    assert_equal(item, preprocessing)


def test_a_picture_that_was_resized_gets_its_size_back():
    item, preprocessing = prepared((12, 9), resize=(7, 16))
    item["pred"] = MetaTensor(torch.randn(4, *item["image"].shape[1:]), meta=item["image"].meta)
    assert assert_equal(item, preprocessing).shape == (1, 12, 9)


def test_it_works_on_a_decollated_batch_and_leaves_other_entries_alone():
    item, preprocessing = prepared((6, 7, 8))
    batch = list_data_collate([item])
    batch["pred"] = convert_to_dst_type(torch.randn(1, 3, *item["image"].shape[1:]), batch["image"])[0]
    case = {**decollate_batch(batch)[0], "image_path": "scan.nii.gz"}
    found = InvertArgmaxd(["pred", "absent"], preprocessing, allow_missing_keys=True)(case)
    assert found["pred"].shape == (1, 6, 7, 8)
    assert found["image"] is case["image"]
    assert found["image_path"] == "scan.nii.gz"


@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0)])
def test_no_second_map_of_all_classes_is_made(spacing):
    shape, classes = (40, 24, 20), 12
    item, preprocessing = prepared(shape, spacing)
    item["pred"] = MetaTensor(torch.randn(classes, *item["image"].shape[1:]), meta=item["image"].meta)
    with Largest() as ours:
        InvertArgmaxd("pred", preprocessing)(dict(item))
    with Largest() as theirs:
        stock(preprocessing)(dict(item))
    one = item["image"].numel()
    assert max(ours.sizes) <= 2 * one  # of a class, or of a slab's coordinates
    assert max(theirs.sizes) >= (classes - 1) * one * 0.5
