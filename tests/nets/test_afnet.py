# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn

from monai_attn.blocks import AutofocusConv
from monai_attn.nets import AFNet
from monai_attn.visualize import capture_attention

NARROW = (2, 2, 3, 3, 3, 4, 4, 4)
SMALL = (4, 4, 6, 6, 6, 6, 8, 8)
RECEPTIVE_FIELD = [29, 53, 77, 101, 125, 149, 173]
# counted from the authors' code, with the 410 biases that we leave out
OFFICIAL = {
    (4, 5): (315_725, 349_904, 371_908, 393_852, 415_796, 437_740, 450_209),
    (1, 7): (313_397, 347_576, 369_580, 391_524, 413_468, 435_412, 447_881),
    (2, 5): (314_105, 348_284, 370_288, 392_232, 414_176, 436_120, 448_589),
    (1, 3): (313_193, 347_372, 369_376, 391_320, 413_264, 435_208, 447_677),
}


def count(*args, **options) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AFNet(*args, **options).parameters())


def small(n: int, dims: int = 2, **options) -> AFNet:
    return AFNet(dims, 2, 3, n_autofocus=n, **{"channels": SMALL, **options})


def trained(network: nn.Module) -> nn.Module:
    """In evaluation, with statistics and affine parameters that are not those of the start."""
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for value in (norm.weight, norm.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (norm.bias, norm.running_mean):
                nn.init.normal_(value)
    return network.eval()


# --- numbers of the paper and of the authors' code ---------------------------------------------------------------


@pytest.mark.parametrize("pair", OFFICIAL, ids=str)
def test_a_network_has_the_parameters_of_the_authors_code_without_its_inert_biases(pair):
    assert [count(3, *pair, n_autofocus=n) + 410 for n in range(7)] == list(OFFICIAL[pair])


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_network_has_the_parameters_of_its_formula_in_any_dimension(dims):
    c, classes, kernel, k = 4, 5, 3**dims, 4
    channels = (30, 30, 40, 40, 40, 40, 50, 50)
    convolutions = kernel * sum(i * o for i, o in zip((c, *channels), channels))
    shortcuts = 30 * 40 + 2 * 40 + 40 * 50 + 2 * 50
    expected = convolutions + 2 * sum(channels) + shortcuts + 50 * classes + classes
    assert count(dims, c, classes, n_autofocus=0) == expected
    for n in range(1, 7):
        inputs, outputs = channels[7 - n], channels[8 - n]
        h = inputs // 2
        expected += kernel * inputs * h + h + h * k + k + (k - 1) * 2 * outputs
        assert count(dims, c, classes, n_autofocus=n) == expected


def test_the_last_n_dilated_layers_are_autofocus_layers():
    for n in range(7):
        layers = [layer for block in small(n).trunk.blocks for layer in (block.first, block.second)]
        assert [isinstance(layer, AutofocusConv) for layer in layers] == [False] * (6 - n) + [True] * n


def support(network: nn.Module, dims: int, side: int) -> list[int]:
    """Over how many voxels of each axis the gradient of the middle output voxel extends."""
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):  # larger weights saturate the softmax
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data /= module.weight[0].numel()
    x = torch.rand(1, 2, *[side] * dims, dtype=torch.float64, requires_grad=True)
    output = network.double().eval()(x)
    middle = (slice(None), slice(None), *[side // 2 for side in output.shape[2:]])
    (gradient,) = torch.autograd.grad(output[middle].sum(), x)
    seen = (gradient != 0).any(1)[0].nonzero()
    return (seen.amax(0) - seen.amin(0) + 1).tolist()


@pytest.mark.parametrize(
    ("n", "dims", "padding"), [*((n, 1, "same") for n in range(7)), (6, 1, "official"), (1, 2, "same")]
)
def test_the_gradient_reaches_exactly_the_receptive_field(n, dims, padding):
    network = small(n, dims, channels=NARROW, padding=padding)
    assert network.receptive_radius == (RECEPTIVE_FIELD[n] - 1) // 2 == 2 + 2 * (6 - n) + 14 * n
    assert support(network, dims, 215 if dims == 1 else 65) == [RECEPTIVE_FIELD[n]] * dims


def test_the_receptive_radius_follows_dilations_and_number_of_blocks():
    assert small(1, dilations=(1, 3)).receptive_radius == 2 + 5 * 2 + 3
    assert small(0, channels=(2, 2, 3, 3)).receptive_radius == 2 + 2 * 2


# --- sizes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 6])
@pytest.mark.parametrize(("dims", "side", "expected"), [(2, 75, 47), (3, 33, 5), (3, 29, 1)])
def test_official_padding_loses_14_voxels_at_every_side(dims, side, expected, n):
    network = small(n, dims, channels=NARROW, padding="official").eval()
    assert network.crop == 14
    with torch.no_grad():
        assert network(torch.rand(1, 2, *[side] * dims)).shape == (1, 3, *[expected] * dims)


def test_an_input_too_small_for_official_padding_raises_also_when_scripted():
    network = small(1, padding="official", channels=NARROW)
    with pytest.raises(ValueError, match=r"padding='official' needs at least 29 voxels"):
        network(torch.rand(1, 2, 29, 28))
    with pytest.raises(Exception, match="at least 29 voxels"):
        torch.jit.script(network)(torch.rand(1, 2, 28, 30))


@given(size=st.lists(st.integers(1, 7), min_size=1, max_size=3), n=st.integers(0, 6))
@settings(max_examples=8, deadline=None)
def test_same_padding_keeps_any_size(size, n):
    network = small(n, len(size), channels=NARROW).eval()
    assert network(torch.rand(2, 2, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize(("n", "dims"), [(0, 2), (1, 1), (1, 2), (2, 1)])
def test_inside_the_radius_both_paddings_agree_and_at_the_border_they_do_not(n, dims):
    same = trained(small(n, dims)).double()
    official = small(n, dims, padding="official").double().eval()
    official.load_state_dict(same.state_dict())
    radius = same.receptive_radius
    x = torch.randn(1, 2, *[2 * radius + 3] * dims, dtype=torch.float64)
    inside = (slice(None), slice(None), *[slice(radius, -radius)] * dims)
    a, b = same(x), official(nn.functional.pad(x, [14] * (2 * dims)))
    torch.testing.assert_close(a[inside], b[inside], atol=1e-12, rtol=0)
    assert (a - b).abs().max() > 1e-3


# --- behavior ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dims", "n", "padding"), [(2, 3, "same"), (3, 1, "official")])
def test_script_trace_and_export_equal_eager(dims, n, padding):
    network = trained(small(n, dims, channels=NARROW, padding=padding))
    x = torch.rand(1, 2, *(31, 30, 29)[:dims])
    expected = network(x)
    scripted = torch.jit.script(network)
    assert torch.equal(scripted(x), expected)
    assert torch.equal(torch.export.export(network, (x,)).module()(x), expected)
    assert (scripted.receptive_radius, scripted.crop) == (network.receptive_radius, network.crop)
    if padding == "same":
        assert torch.equal(torch.jit.trace(network, x)(x), expected)


def test_without_gradients_the_logits_are_those_of_the_definition():
    network = trained(small(3))
    x = torch.rand(2, 2, 31, 20)
    with torch.no_grad():
        found = network(x)
    torch.testing.assert_close(found, network(x), atol=1e-5, rtol=1e-5)


def test_memory_efficient_training_on_monais_tensors_gives_the_gradients_of_the_plain_form():
    gradients = []
    for memory_efficient in (False, True):
        torch.manual_seed(0)
        network = small(4, memory_efficient=memory_efficient, detach_attention=False).double().train()
        network(MetaTensor(torch.randn(2, 2, 15, 16, dtype=torch.float64))).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()] + list(network.buffers()))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("n", [0, 6])
def test_every_parameter_gets_a_gradient(n):
    network = small(n).train()
    network(torch.randn(2, 2, 15, 16)).pow(3).mean().backward()
    assert [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_a_residual_block_activates_last_and_its_shortcut_has_weights_only_where_the_channels_change():
    blocks = trained(small(0)).trunk.blocks
    x = torch.randn(1, 4, 9, 8)
    hidden = blocks[0].first(x).relu()
    expected = (blocks[0].second(hidden) + blocks[0].shortcut(x)).relu()
    torch.testing.assert_close(blocks[0](x), expected, atol=1e-6, rtol=0)
    assert [isinstance(block.shortcut, nn.Identity) for block in blocks] == [False, True, False]


def test_the_attention_of_every_autofocus_layer_is_captured():
    network = small(3).eval()
    with capture_attention(network) as maps:
        network(torch.rand(1, 2, 9, 8))
    assert list(maps) == ["trunk.blocks.1.second.gate", "trunk.blocks.2.first.gate", "trunk.blocks.2.second.gate"]
    assert all(value.shape == (1, 4, 9, 8) for value in maps.values())


def test_paper_init_draws_small_weights_and_leaves_biases_and_norms():
    network = AFNet(2, 4, 5, n_autofocus=6, init="paper")
    weights = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d)])
    assert float(weights.detach().std()) == pytest.approx(0.01, rel=0.01)
    assert all((m.weight == 1).all() for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    assert network.classifier.bias.any()
    assert AFNet(2, 4, 5).classifier.weight.std() > 0.02


@pytest.mark.parametrize("norm", ["instance", None, ("group", {"num_groups": 2})])
def test_other_normalizations_train(norm):
    network = small(2, norm=norm, channels=(4, 4, 4, 4))
    network(torch.rand(2, 2, 9, 8)).mean().backward()
    assert network.classifier.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_autofocus": 7}, "n_autofocus must be from 0 to 6.*got 7"),
        ({"n_autofocus": -1}, "got -1"),
        ({"channels": (4, 4)}, "channels must be 2 and 2 more"),
        ({"channels": (4, 4, 6)}, "channels must be 2 and 2 more"),
        ({"padding": "valid"}, "official"),
        ({"init": "kaiming"}, "paper"),
        ({"dilations": (1, 2), "padding": "official"}, "crop"),
        ({"dilations": (6, 2)}, "rising"),
    ],
)
def test_a_bad_option_raises(options, message):
    with pytest.raises(ValueError, match=message):
        AFNet(2, 2, 3, **options)
