# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from einops import einsum
from torch import nn

from monai_attn.blocks import EdgeGate, Gate
from monai_attn.visualize import capture_attention

from ..conftest import count

SIZES = {1: (11,), 2: (7, 6), 3: (5, 3, 4)}
GATES = ["relu_sigmoid", "sigmoid"]


def inputs(dims: int, edge: int, main: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, edge, *SIZES[dims], dtype=dtype), torch.randn(2, main, *SIZES[dims], dtype=dtype)


def conv1(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    bias = 0 if conv.bias is None else conv.bias.reshape(-1, *[1] * (x.ndim - 2))
    return einsum(x, conv.weight.flatten(1), "b c ..., o c -> b o ...") + bias


def attention_of(block: EdgeGate, edges: torch.Tensor, main: torch.Tensor) -> torch.Tensor:
    with capture_attention(block) as maps:
        block(edges, main)
    return maps["gate"]


@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("channels", [1, None])
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_output_is_that_of_equations_1_and_2(dims, gate, channels, project):
    block = EdgeGate(dims, 4, 6, gate=gate, attention_channels=channels, project=project).double()
    if project:
        nn.init.normal_(block.project.weight)
    edges, main = inputs(dims, 4, 6)
    logits = conv1(block.edge_conv, edges) + conv1(block.main_conv, main)
    attention = 1 / (1 + torch.exp(-(logits.clamp(min=0) if gate == "relu_sigmoid" else logits)))
    expected = edges * attention + edges
    if project:
        expected = conv1(block.project, expected)
    torch.testing.assert_close(block(edges, main), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_at_construction_the_projection_changes_nothing(dims):
    block = EdgeGate(dims, 5, 3)
    edges, main = inputs(dims, 5, 3, torch.float32)
    attention = attention_of(block, edges, main)
    assert torch.equal(block(edges, main), edges * attention + edges)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_by_the_relu_the_map_is_at_least_one_half_and_the_sigmoid_alone_goes_below(dims):
    edges, main = inputs(dims, 4, 6)
    faithful = EdgeGate(dims, 4, 6).double()
    attention = attention_of(faithful, edges, main)
    assert attention.min() == 0.5
    assert 0.5 < attention.max() < 1
    output, magnitude = faithful(edges, main).abs(), edges.abs()
    assert (output >= 1.5 * magnitude).all()
    assert (output < 2 * magnitude).all()

    free = EdgeGate(dims, 4, 6, gate="sigmoid").double()
    free.load_state_dict(faithful.state_dict())
    below = attention_of(free, edges, main)
    assert 0 < below.min() < 0.5
    torch.testing.assert_close(below.clamp(min=0.5), attention, atol=1e-15, rtol=0)


@pytest.mark.parametrize(("gate", "learns"), [("relu_sigmoid", False), ("sigmoid", True)])
def test_where_the_sum_is_negative_the_relu_passes_no_gradient(gate, learns):
    block = EdgeGate(2, 4, 6, gate=gate)
    nn.init.constant_(block.main_conv.bias, -10)
    edges, main = inputs(2, 4, 6, torch.float32)
    block(edges, main).square().sum().backward()
    assert bool(block.edge_conv.weight.grad.any()) == bool(block.main_conv.bias.grad.any()) == learns


def test_one_map_serves_all_edge_features_and_none_gives_each_its_own():
    edges, main = inputs(2, 4, 6, torch.float32)
    assert attention_of(EdgeGate(2, 4, 6), edges, main).shape == (2, 1, 7, 6)
    for channels in (None, 4):
        assert attention_of(EdgeGate(2, 4, 6, attention_channels=channels), edges, main).shape == (2, 4, 7, 6)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("edge", "main"), [(16, 16), (32, 64), (5, 3)])
def test_the_number_of_parameters_is_that_of_the_formula(dims, edge, main):
    assert count(EdgeGate(dims, edge, main)) == (edge + 1) + (main + 1) + edge**2
    assert count(EdgeGate(dims, edge, main, project=False)) == (edge + 1) + (main + 1)
    assert count(EdgeGate(dims, edge, main, attention_channels=None)) == edge * (edge + main + 2) + edge**2


@pytest.mark.parametrize("channels", [0, 2, 6, -1])
def test_a_number_of_maps_that_fits_no_feature_raises_and_names_the_numbers(channels):
    with pytest.raises(ValueError, match=rf"attention_channels must be 1 or None.*got {channels}"):
        EdgeGate(2, 4, 6, attention_channels=channels)


@pytest.mark.parametrize("gate", ["relu", "SIGMOID", "", None])
def test_an_unknown_gate_raises(gate):
    with pytest.raises(ValueError, match="relu_sigmoid"):
        EdgeGate(2, 4, 6, gate=gate)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 4), (2, 3, 5, 4, 6)])
def test_sigmoid_gate_equals_one_over_one_plus_exp_of_minus_the_logits(shape):
    logits = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(Gate()(logits), 1 / (1 + (-logits).exp()), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 4), (2, 3, 5, 4, 6)])
def test_softmax_gate_normalizes_over_the_channels_only(shape):
    logits = torch.randn(shape, dtype=torch.float64)
    expected = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    torch.testing.assert_close(Gate("softmax")(logits), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_gate_stays_finite_for_huge_logits(activation):
    gate = Gate(activation)(torch.tensor([[-1e4, 1e4]]))
    torch.testing.assert_close(gate, torch.tensor([[0.0, 1.0]]))


def test_a_gate_has_no_parameters_and_no_buffers():
    assert not Gate().state_dict()


@pytest.mark.parametrize("activation", ["relu", "Sigmoid", "", None])
def test_an_unknown_activation_raises(activation):
    with pytest.raises(ValueError, match="sigmoid"):
        Gate(activation)
