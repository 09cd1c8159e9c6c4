# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import (
    AsDiscreted,
    Compose,
    EnsureTyped,
    Invertd,
    Orientationd,
    SpatialPadd,
)
from monai.utils import convert_to_dst_type

from monai_attn.errors import ConfigError
from monai_attn.transforms import AsLabelMapd, InvertArgmaxd, SafeSpacingd


def prepared(shape, spacing=None):
    """An image in PIR orientation, prepared, and the preprocessing."""
    affine = torch.zeros(4, 4, dtype=torch.float64)
    affine[[1, 2, 0, 3], [0, 1, 2, 3]] = torch.tensor([-1.1, -0.9, 1.3, 1.0], dtype=torch.float64)
    steps = [Orientationd("image", "RAS", labels=None)] if len(shape) == 3 else []
    steps += [SafeSpacingd("image", spacing, dtype=torch.float32)] if spacing else []
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


@pytest.mark.parametrize(("spacing", "classes"), [(None, 5), ((1.0, 1.0, 1.0), 1), ((2.0, 0.7, 1.5), 2)])
def test_a_label_map_is_that_of_invertd_and_asdiscreted_bit_by_bit(spacing, classes):
    item, preprocessing = prepared((21, 8, 10), spacing)
    scores = torch.randn(classes, *item["image"].shape[1:]).mul(4).round()  # with many ties
    if spacing is None:  # to interpolate between infinities gives NaN
        scores[0, 10:12], scores[1, :3] = float("inf"), -float("inf")
    item["pred"] = MetaTensor(scores, meta=item["image"].meta)
    before = item["pred"].clone()
    found = assert_equal(item, preprocessing)
    assert found.shape == (1, 21, 8, 10)
    assert torch.equal(item["pred"], before)


@settings(max_examples=8, deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=2, max_size=3), classes=st.integers(1, 4), half=st.booleans())
def test_it_is_so_for_any_shape(shape, classes, half):
    item, preprocessing = prepared(tuple(shape))
    scores = torch.randint(0, 3, (classes, *item["image"].shape[1:])).to(torch.float16 if half else torch.float32)
    item["pred"] = MetaTensor(scores, meta=item["image"].meta)
    assert_equal(item, preprocessing)


def test_it_works_on_a_decollated_batch_and_leaves_other_entries_alone():
    item, preprocessing = prepared((6, 7, 8))
    batch = list_data_collate([item])
    batch["pred"] = convert_to_dst_type(torch.randn(1, 3, *item["image"].shape[1:]), batch["image"])[0]
    case = {**decollate_batch(batch)[0], "image_path": "scan.nii.gz"}
    found = InvertArgmaxd(["pred", "absent"], preprocessing, allow_missing_keys=True)(case)
    assert found["pred"].shape == (1, 6, 7, 8)
    assert found["image"] is case["image"]
    assert found["image_path"] == "scan.nii.gz"


def test_one_class_at_a_time_is_brought_back(monkeypatch):
    invert, channels = Invertd.__call__, []

    def note(self, data):
        channels.append(len(data["pred"]))
        return invert(self, data)

    monkeypatch.setattr(Invertd, "__call__", note)
    item, preprocessing = prepared((6, 7, 8))
    InvertArgmaxd("pred", preprocessing)({**item, "pred": item["image"].repeat(3, 1, 1, 1)})
    assert channels == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_other_metadata_are_kept_and_the_source_is_not_changed(dtype):
    pred = MetaTensor(torch.tensor([[[0.0, 2.5]]]), meta={"filename_or_obj": "a.nii", "original_channel_dim": 0})
    label_map = AsLabelMapd("pred", dtype=dtype)({"pred": pred})["pred"]
    assert label_map.tolist() == [[[0, 2.5 if dtype == torch.float32 else 2]]]
    assert (label_map.meta["filename_or_obj"], label_map.meta["original_channel_dim"]) == ("a.nii", "no_channel")
    assert (pred.dtype, pred.meta["original_channel_dim"]) == (torch.float32, 0)


def test_a_label_too_large_for_the_type_is_refused():
    pred = MetaTensor(torch.tensor([[0.0, 256.0]]))
    assert AsLabelMapd("pred", dtype=torch.int16)({"pred": pred})["pred"].max() == 256
    with pytest.raises(ConfigError, match="label 256 does not fit"):
        AsLabelMapd("pred")({"pred": pred})
