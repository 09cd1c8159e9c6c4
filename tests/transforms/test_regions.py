# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import ConvertToMultiChannelBasedOnBratsClasses

from monai_attn.transforms import BrainMaskd, LabelsToRegions, LabelsToRegionsd, RegionsToLabels, RegionsToLabelsd

BRATS = [[1, 2, 4], [1, 4], [4]]  # whole, core, enhancing


def test_regions_of_brats_equal_those_of_monai():
    label = torch.tensor([0, 1, 2, 4])[torch.randint(0, 4, (1, 4, 5, 6))].byte()
    whole, core, enhancing = LabelsToRegions(BRATS)(label)
    assert torch.equal(torch.stack([core, whole, enhancing]), ConvertToMultiChannelBasedOnBratsClasses()(label).byte())


@given(values=st.lists(st.sampled_from([0, 1, 2, 4]), min_size=1, max_size=30))
@settings(max_examples=10, deadline=None)
def test_nested_regions_and_back_give_the_labels(values):
    label = torch.tensor([values], dtype=torch.uint8)
    assert torch.equal(RegionsToLabels([2, 1, 4])(LabelsToRegions(BRATS)(label)), label)
    outside = torch.tensor([[0.0], [0.0], [1.0]])  # of one region, within no other
    assert RegionsToLabels([2, 1, 4])(outside).tolist() == [[4]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_grid_and_the_kind_of_array_are_kept(dtype):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0]))
    label = MetaTensor(torch.tensor([[[[0, 1], [2, 4]]]], dtype=dtype), affine=affine)
    case = LabelsToRegionsd("label", BRATS, output_keys="regions")({"label": label})
    assert case["regions"].dtype == torch.uint8
    assert torch.equal(case["regions"].affine, label.affine)
    assert case["label"] is label
    back = RegionsToLabelsd("regions", [2, 1, 4])(case)["regions"]
    assert torch.equal(back.as_tensor(), label.as_tensor().byte())
    assert torch.equal(back.affine, label.affine)
    assert isinstance(LabelsToRegions(BRATS)(label.numpy()), np.ndarray)


def test_wrong_numbers_of_channels_raise():
    with pytest.raises(ValueError, match="label map"):
        LabelsToRegions(BRATS)(torch.zeros(2, 4, 4))
    with pytest.raises(ValueError, match="3 regions"):
        RegionsToLabels([2, 1, 4])(torch.zeros(2, 4, 4))


@pytest.mark.parametrize(("outside", "size"), [(0.0, (9, 8)), (-3.4595714, (9, 8, 7))])
def test_the_brain_is_where_any_channel_differs_from_outside(outside, size):
    inside = torch.zeros(1, *size, dtype=torch.bool)
    inside[(0, *[slice(2, 5)] * len(size))] = True
    image = torch.where(inside, torch.rand(2, *size) + 1, outside)
    image[0][inside[0] & (image[1] > 1.5)] = outside  # dark in one channel, but not in the other
    case = BrainMaskd("image", "brain")({"image": MetaTensor(image)})
    assert torch.equal(case["brain"].as_tensor(), inside.byte())
    assert not BrainMaskd("image", "brain")({"image": torch.full_like(image, outside)})["brain"].any()
