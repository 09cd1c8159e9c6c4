# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_attn.nets import AFNet, ASPPNet

NARROW = (2, 2, 3, 3, 3, 4, 4, 4)
PAIRS = [(4, 5), (1, 7), (2, 5), (1, 3)]
# counted from the authors' code, with the inert biases that we leave out
OFFICIAL = {"cat": (478_435, 476_247, 476_815, 475_763), "sum": (967_330, 965_868, 965_710, 963_932)}
INERT = {"cat": 530, "sum": 890}


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def small(fusion: str, dims: int = 2, **options) -> ASPPNet:
    return ASPPNet(dims, 2, 3, fusion=fusion, **{"channels": NARROW, "features": 3, **options}).eval()


@pytest.mark.parametrize(("pair", "index"), zip(PAIRS, range(4)))
@pytest.mark.parametrize("fusion", ["cat", "sum"])
def test_a_network_has_the_parameters_of_the_authors_code_without_its_inert_biases(fusion, pair, index):
    with torch.device("meta"):
        assert count(ASPPNet(3, *pair, fusion=fusion)) == OFFICIAL[fusion][index] - INERT[fusion]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_network_has_the_parameters_of_its_formula_in_any_dimension(dims):
    c, classes, kernel = 4, 5, 3**dims
    with torch.device("meta"):
        trunk = count(AFNet(dims, c, classes, n_autofocus=0).trunk)
        assert count(ASPPNet(dims, c, classes)) == trunk + 4 * kernel * 50 * 30 + 2 * 120 + 121 * classes
        head = 4 * (kernel * 50 * 120 + 2 * 120 + 121 * classes)
        assert count(ASPPNet(dims, c, classes, fusion="sum")) == trunk + head


@pytest.mark.parametrize("fusion", ["cat", "sum"])
def test_the_receptive_radius_is_that_of_the_trunk_and_the_largest_dilation(fusion):
    assert small(fusion).receptive_radius == 28
    assert small(fusion, dilations=(1, 4)).receptive_radius == 18


@pytest.mark.parametrize("fusion", ["cat", "sum"])
def test_official_padding_loses_14_voxels_at_every_side(fusion):
    network = small(fusion, 3, padding="official")
    assert network.crop == 14
    assert network(torch.rand(1, 2, 33, 29, 30)).shape == (1, 3, 5, 1, 2)
    with pytest.raises(ValueError, match="loses 14 voxels"):
        network(torch.rand(1, 2, 28, 33, 33))


@given(size=st.lists(st.integers(1, 7), min_size=1, max_size=3), fusion=st.sampled_from(["cat", "sum"]))
@settings(max_examples=15, deadline=None)
def test_same_padding_keeps_any_size(size, fusion):
    assert small(fusion, len(size))(torch.rand(1, 2, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("fusion", ["cat", "sum"])
@pytest.mark.parametrize("dims", [2, 3])
def test_script_trace_and_export_equal_eager(dims, fusion):
    network = small(fusion, dims)
    x = torch.rand(1, 2, *(9, 8, 7)[:dims])
    expected = network(x)
    for other in (torch.jit.script(network), torch.jit.trace(network, x), torch.export.export(network, (x,)).module()):
        assert torch.equal(other(x), expected)


@pytest.mark.parametrize("fusion", ["cat", "sum"])
def test_every_parameter_gets_a_gradient(fusion):
    network = small(fusion, channels=(4, 4, 6, 6, 6, 6, 8, 8)).train()
    network(torch.randn(2, 2, 15, 16)).pow(3).mean().backward()
    assert [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_paper_init_draws_small_weights():
    network = ASPPNet(2, 4, 5, init="paper")
    weights = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d)])
    assert float(weights.detach().std()) == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("options", [{"fusion": "add"}, {"padding": "valid"}, {"init": "he"}, {"channels": (3,)}])
def test_a_bad_option_raises(options):
    with pytest.raises(ValueError, match=r"sum|official|paper|channels"):
        ASPPNet(2, 2, 3, **options)
