# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_attn.blocks import PreActResidual

from ..conftest import count

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (PreActResidual(2, 32, 32, stride=2), 19_680),
        (PreActResidual(2, 32, 32, preact=False), 2 * 9_248 + 64),
        (PreActResidual(2, 32, 64, preact=False), 32 * 9 * 64 + 64 + 64 * 9 * 64 + 64 + 128 + 32 * 64 + 64),
        # without biases: 2 ci + 2 co + 27 ci co + 27 co^2 + ci co, the block of an edge stream
        (PreActResidual(3, 8, 16, bias=False, norm=("group", {"num_groups": 8})), 16 + 32 + 27 * 128 + 27 * 256 + 128),
    ],
    ids=["strided", "identity", "widening", "edge stream"],
)
def test_the_number_of_parameters_is_exact(block, expected):
    assert count(block) == expected


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("preact", [True, False])
def test_the_block_computes_its_formula(dims, preact):
    block = PreActResidual(dims, 3, 5, preact=preact, norm=("instance", {"affine": True})).double()
    x = torch.randn(2, 3, *(9, 7, 6)[:dims], dtype=torch.float64)
    conv = CONV[dims]
    h = torch.relu(F.instance_norm(x)) if preact else x
    h = torch.relu(F.instance_norm(conv(h, block.conv1.weight, block.conv1.bias, padding=1)))
    expected = conv(h, block.conv2.weight, block.conv2.bias, padding=1)
    expected = expected + conv(x, block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(block(x), expected, atol=1e-10, rtol=0)


def test_without_a_residual_the_strided_block_is_its_strided_1x1_convolution():
    block = PreActResidual(2, 4, 4, stride=2)
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    x = torch.randn(1, 4, 6, 9)
    assert torch.equal(block(x), F.conv2d(x, block.shortcut.weight, block.shortcut.bias, stride=2))


@given(
    size=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    stride=st.integers(1, 2),
    padding=st.sampled_from(["symmetric", "tf"]),
)
@settings(max_examples=60, deadline=None)
def test_any_size_is_halved_and_rounded_up(size, stride, padding):
    block = PreActResidual(len(size), 2, 3, stride=stride, padding=padding).eval()
    assert block(torch.rand(1, 2, *size)).shape == (1, 3, *(math.ceil(side / stride) for side in size))


def test_tf_padding_puts_the_odd_voxel_at_the_far_end():
    block = PreActResidual(1, 1, 1, stride=2, padding="tf", preact=True)
    for size, ends in ((6, (0, 1)), (7, (1, 1))):
        x = torch.arange(1.0, size + 1)[None, None]
        assert torch.equal(block.before[-1](x), F.pad(x, ends))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_kept_and_dropout_acts_in_training_only(dtype):
    block = PreActResidual(2, 4, 4, dropout=0.5).to(dtype)
    x = torch.randn(2, 4, 8, 8, dtype=dtype)
    assert block(x).dtype == dtype
    assert not torch.equal(block(x), block(x))
    assert torch.equal(block.eval()(x), block(x))


def test_an_unknown_padding_raises():
    with pytest.raises(ValueError, match="symmetric"):
        PreActResidual(2, 3, 3, padding="same")
