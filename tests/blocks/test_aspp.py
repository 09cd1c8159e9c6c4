# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_attn.blocks import ASPP

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = {1: (37,), 2: (9, 8), 3: (5, 6, 7)}
DIMS = [1, 2, 3]
DILATIONS = (2, 6, 10, 14)


def normalised(norm: nn.Module, u: torch.Tensor) -> torch.Tensor:
    shape = (1, -1, *[1] * (u.ndim - 2))
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (u - norm.running_mean.reshape(shape)) * scale.reshape(shape) + norm.bias.reshape(shape)


def trained(dims: int, fusion: str) -> ASPP:
    block = ASPP(dims, 4, 3, fusion=fusion, features=5).double().eval()
    for norm in block.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for value in (norm.weight, norm.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (norm.bias, norm.running_mean):
                nn.init.normal_(value)
    return block


def restated(block: ASPP, u: torch.Tensor, fusion: str) -> torch.Tensor:
    conv = CONV[u.ndim - 2]
    convs = [branch if fusion == "cat" else branch[0] for branch in block.branches]
    features = [conv(u, c.conv.weight, padding=d, dilation=d) for c, d in zip(convs, DILATIONS, strict=True)]
    if fusion == "cat":
        norm, _, head = block.joint
        return conv(normalised(norm, torch.cat(features, 1)).clamp(min=0), head.weight, head.bias)
    activated = [normalised(c.adn.N, f).clamp(min=0) for c, f in zip(convs, features)]
    heads = [branch[1] for branch in block.branches]
    return sum(conv(a, head.weight, head.bias) for a, head in zip(activated, heads))


@pytest.mark.parametrize("fusion", ["cat", "sum"])
@pytest.mark.parametrize("dims", DIMS)
def test_the_block_equals_its_definition_to_1e_12(dims, fusion):
    block = trained(dims, fusion)
    u = torch.randn(2, 4, *SIZES[dims], dtype=torch.float64)
    torch.testing.assert_close(block(u), restated(block, u, fusion), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dims", DIMS)
def test_the_block_has_the_number_of_parameters_of_its_formula(dims):
    kernel, c, classes = 3**dims, 50, 5
    cat = 4 * kernel * c * 30 + 2 * 120 + 121 * classes
    total = 4 * (kernel * c * 120 + 2 * 120 + 121 * classes)
    for fusion, expected in (("cat", cat), ("sum", total)):
        assert sum(p.numel() for p in ASPP(dims, c, classes, fusion=fusion).parameters()) == expected


@pytest.mark.parametrize("fusion", ["cat", "sum"])
@pytest.mark.parametrize("dims", DIMS)
def test_script_trace_and_export_equal_eager(dims, fusion):
    block = ASPP(dims, 4, 3, fusion=fusion, features=5).eval()
    u = torch.randn(1, 4, *SIZES[dims])
    for other in (torch.jit.script(block), torch.jit.trace(block, u), torch.export.export(block, (u,)).module()):
        assert torch.equal(other(u), block(u))


@pytest.mark.parametrize("fusion", ["cat", "sum"])
def test_every_parameter_gets_a_gradient(fusion):
    block = ASPP(2, 4, 3, fusion=fusion)
    block(torch.randn(2, 4, 9, 8)).pow(3).sum().backward()
    assert [key for key, value in block.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_the_radius_is_the_largest_dilation():
    assert ASPP(2, 4, 3, dilations=(1, 9, 4)).radius == 9


@given(size=st.lists(st.integers(1, 6), min_size=1, max_size=3), fusion=st.sampled_from(["cat", "sum"]))
@settings(max_examples=20, deadline=None)
def test_the_output_has_the_size_of_any_input(size, fusion):
    block = ASPP(len(size), 2, 3, fusion=fusion, features=2, norm=None)
    assert block(torch.randn(2, 2, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("options", [{"fusion": "add"}, {"fusion": None}, {"dilations": ()}, {"dilations": (0, 2)}])
def test_a_bad_option_raises(options):
    with pytest.raises(ValueError, match=r"sum|dilations"):
        ASPP(2, 4, 3, **options)
