# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_attn.nets import DeepMedic

CHANNELS = (3, 3, 4, 4, 4, 4, 5, 5)
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = {1: (20,), 2: (9, 13), 3: (7, 6, 10)}


def small(dims: int = 2, **options) -> DeepMedic:
    return DeepMedic(dims, 2, 3, **{"channels": CHANNELS, "fc_channels": (6, 6), **options})


def trained(network: nn.Module) -> nn.Module:
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for value in (norm.weight, norm.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (norm.bias, norm.running_mean):
                nn.init.normal_(value)
    return network.double().eval()


def restated(network: DeepMedic, x: torch.Tensor) -> torch.Tensor:
    """The article's graph by the order of its parameters, in float64 and evaluation."""
    dims = x.ndim - 2
    shape = (1, -1, *[1] * dims)

    def run(path: nn.Module, u: torch.Tensor) -> torch.Tensor:
        convs = [m for m in path.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
        norms = [m for m in path.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        inputs = []
        for layer, conv in enumerate(convs, 1):
            inputs.append(u)
            if layer > 1 or path is network.classifier:
                norm = norms[layer - 1 if path is network.classifier else layer - 2]
                u = (u - norm.running_mean.reshape(shape)) / (norm.running_var.reshape(shape) + norm.eps).sqrt()
                u = (u * norm.weight.reshape(shape) + norm.bias.reshape(shape)).clamp(min=0)
            u = CONV[dims](u, conv.weight, conv.bias, padding=conv.weight.shape[2] // 2)
            if layer in (4, 6, 8):
                earlier = inputs[layer - 2]  # what entered the layer before
                u = u.clone()
                u[:, : earlier.shape[1]] += earlier
        return u

    full = run(network.full, x)
    windows = x
    for axis in range(2, x.ndim):
        side = x.shape[axis]
        windows = windows.index_select(axis, torch.arange(side + -side % 3).clamp(max=side - 1)).unfold(axis, 3, 3)
    low = run(network.low, windows.flatten(-dims).mean(-1))
    for axis in range(2, x.ndim):
        low = low.repeat_interleave(3, axis).narrow(axis, 0, x.shape[axis])
    return run(network.classifier, torch.cat([full, low], 1))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_network_equals_its_graph_to_1e_12(dims):
    network = trained(small(dims))
    x = torch.randn(2, 2, *SIZES[dims], dtype=torch.float64)
    torch.testing.assert_close(network(x), restated(network, x), atol=1e-12, rtol=1e-12)


def test_the_network_has_662_215_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in DeepMedic(3, 4, 5).parameters()) == 662_215


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_network_has_the_parameters_of_its_formula_in_any_dimension(dims):
    channels, c, classes = (30, 30, 40, 40, 40, 40, 50, 50), 4, 5
    path = 3**dims * sum(i * o for i, o in zip((c, *channels), channels)) + 2 * sum(channels)
    joined = 100 * 150 + 300 + 150 * 150 + 300 + 150 * classes + classes
    with torch.device("meta"):
        assert sum(p.numel() for p in DeepMedic(dims, c, classes).parameters()) == 2 * path + joined


@given(
    size=st.lists(st.integers(1, 10), min_size=1, max_size=3),
    scale=st.integers(1, 4),
    batch=st.integers(1, 2),
)
@settings(max_examples=25, deadline=None)
def test_the_output_has_the_size_of_any_input(size, scale, batch):
    network = small(len(size), scale=scale).eval()
    assert network(torch.rand(batch, 2, *size)).shape == (batch, 3, *size)


def test_the_second_path_sees_about_three_times_as_far():
    network = trained(small(1))
    for module in network.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.uniform_(module.weight, 0.1, 0.3)
    x = torch.rand(1, 2, 99, dtype=torch.float64, requires_grad=True)
    for path, expected in ((network.full, 17), (lambda u: network.low(network.down(u)), 51)):
        output = path(x)
        (gradient,) = torch.autograd.grad(output[..., output.shape[-1] // 2].sum(), x)
        assert int((gradient != 0).any(1).sum()) == expected


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_script_and_export_equal_eager(dims):
    network = small(dims).eval()
    x = torch.rand(1, 2, *SIZES[dims])
    for other in (torch.jit.script(network), torch.jit.trace(network, x), torch.export.export(network, (x,)).module()):
        torch.testing.assert_close(other(x), network(x), atol=1e-6, rtol=0)


def test_every_parameter_gets_a_gradient():
    network = small(channels=(6, 6, 8, 8), dropout=0.1).train()
    network(torch.randn(2, 2, 15, 16)).pow(3).mean().backward()
    assert [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_evaluation_is_deterministic_and_dropout_acts_in_training_behind_the_first_1x1_layer():
    network = small()
    x = torch.rand(2, 2, 9, 8)
    network.eval()
    assert torch.equal(network(x), network(x))
    assert [m.p for m in network.classifier.modules() if isinstance(m, nn.Dropout)] == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(("options", "message"), [({"channels": (3, 3, 4)}, "channels"), ({"scale": 0}, "got 0")])
def test_a_bad_option_raises(options, message):
    with pytest.raises(ValueError, match=message):
        DeepMedic(2, 2, 3, **options)
