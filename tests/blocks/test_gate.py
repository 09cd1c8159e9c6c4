# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from monai_attn.blocks import Gate


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 4), (2, 3, 5, 4, 6)])
def test_sigmoid_gate_equals_one_over_one_plus_exp_of_minus_the_logits(shape):
    logits = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(Gate()(logits), 1 / (1 + (-logits).exp()), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 5), (2, 3, 5, 4), (2, 3, 5, 4, 6)])
def test_softmax_gate_normalises_over_the_channels_only(shape):
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
