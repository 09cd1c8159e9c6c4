# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SliceInferer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from monai_attn.inferers import SliceBatchInferer
from monai_attn.nets import SCSESDNet


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def slice_by_slice(volumes: torch.Tensor, network: nn.Module, axis: int) -> torch.Tensor:
    return torch.stack([network(piece) for piece in volumes.unbind(axis + 2)], dim=axis + 2)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_output_equals_the_network_on_each_slice_alone(axis, batch_size):
    network = nn.Conv2d(2, 3, 3, padding=1).double()
    volumes = torch.randn(2, 2, 5, 6, 7, dtype=torch.float64)
    output = SliceBatchInferer(axis, batch_size)(volumes, network)
    assert output.shape == (2, 3, 5, 6, 7)
    assert output.is_contiguous()
    torch.testing.assert_close(output, slice_by_slice(volumes, network, axis), atol=1e-12, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_output_of_an_attention_network_equals_that_on_each_slice_alone(axis):
    network = SCSESDNet(2, 1, 3, features=4, depth=2, positions="P6").double().eval()
    volumes = torch.randn(2, 1, 9, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        output = SliceBatchInferer(axis, 4)(volumes, network)
        torch.testing.assert_close(output, slice_by_slice(volumes, network, axis), atol=1e-12, rtol=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_output_equals_that_of_the_slice_inferer_of_monai(axis):
    network = nn.Conv2d(1, 2, 3, padding=1)
    volumes = torch.randn(2, 1, 5, 6, 7)
    size = [side for index, side in enumerate((5, 6, 7)) if index != axis]
    theirs = SliceInferer(roi_size=size, spatial_dim=axis, sw_batch_size=3)(volumes, network)
    torch.testing.assert_close(SliceBatchInferer(axis, 3)(volumes, network), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("batch_size", "calls"), [(1, [1] * 14), (4, [4, 4, 4, 2]), (7, [7, 7]), (14, [14]), (100, [14])]
)
def test_the_network_sees_at_most_batch_size_slices_at_once(batch_size, calls):
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return x

    volumes = torch.randn(2, 3, 5, 6, 7)
    output = SliceBatchInferer(2, batch_size)(volumes, network)
    assert seen == [(number, 3, 5, 6) for number in calls]
    assert torch.equal(output, volumes)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_there_is_one_tensor_of_the_size_of_the_output(axis):
    made = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.numel() >= 4 * 6 * 8 * 10:
                made.append(result.untyped_storage().data_ptr())
            return result

    with Note():
        output = SliceBatchInferer(axis, 2)(torch.randn(1, 1, 6, 8, 10), lambda x: x.repeat(1, 4, 1, 1))
    assert set(made) == {output.untyped_storage().data_ptr()}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int64])
def test_the_dtype_of_the_output_is_that_of_the_network(dtype):
    volumes = torch.randn(1, 1, 3, 4, 5)
    assert SliceBatchInferer()(volumes, lambda x: x.to(dtype)).dtype == dtype


def test_a_meta_tensor_keeps_its_meta_data_and_the_network_sees_plain_tensors():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(torch.randn(1, 1, 4, 5, 6), affine=affine, meta={"filename_or_obj": "case.nii"})
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(type(x))
        return x.repeat(1, 2, 1, 1)

    output = SliceBatchInferer()(volume, network)
    assert set(seen) == {torch.Tensor}
    assert isinstance(output, MetaTensor)
    assert output.meta["filename_or_obj"] == "case.nii"
    assert torch.equal(output.affine, affine)
    assert torch.equal(output.as_tensor(), volume.as_tensor().repeat(1, 2, 1, 1, 1))


def test_a_plain_tensor_gives_a_plain_tensor():
    assert type(SliceBatchInferer()(torch.rand(1, 1, 3, 4, 5), nn.Identity())) is torch.Tensor


def test_further_arguments_reach_the_network():
    def network(x: torch.Tensor, scale: float, *, shift: float) -> torch.Tensor:
        return x * scale + shift

    volumes = torch.rand(1, 1, 3, 4, 5)
    torch.testing.assert_close(SliceBatchInferer()(volumes, network, 2.0, shift=1.0), volumes * 2 + 1)


def test_gradients_flow_through_the_inferer():
    volumes = torch.rand(1, 1, 3, 4, 5, requires_grad=True)
    SliceBatchInferer(1, 2)(volumes, nn.Identity()).square().sum().backward()
    torch.testing.assert_close(volumes.grad, 2 * volumes.detach())


@given(
    size=st.lists(st.integers(1, 6), min_size=3, max_size=3),
    batch=st.integers(1, 3),
    axis=st.integers(0, 2),
    batch_size=st.integers(1, 8),
)
@settings(max_examples=30, deadline=None)
def test_slices_come_back_to_their_place_for_any_size(size, batch, axis, batch_size):
    volumes = torch.randn(batch, 2, *size)
    assert torch.equal(SliceBatchInferer(axis, batch_size)(volumes, nn.Identity()), volumes)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_raises(batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        SliceBatchInferer(batch_size=batch_size)


@pytest.mark.parametrize("shape", [(4, 5), (1, 4, 5), (1, 1, 4, 5), (1, 1, 4, 5, 6, 7)])
def test_input_that_is_no_batch_of_volumes_raises_and_tells_its_shape(shape):
    with pytest.raises(ValueError, match=r"\(B, C, H, W, D\).*" + str(shape).replace("(", r"\(").replace(")", r"\)")):
        SliceBatchInferer()(torch.rand(shape), nn.Identity())
