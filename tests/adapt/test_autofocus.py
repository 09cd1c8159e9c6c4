# SPDX-License-Identifier: Apache-2.0
import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import AttentionUnet, DynUNet, HighResNet, SegResNet, UNet
from torch import nn

from monai_attn.adapt import Places, autofocus, recalibrate
from monai_attn.adapt.autofocus import FocusedConv, ZeroInitGate
from monai_attn.blocks import AutofocusConv
from monai_attn.nets import AFNet
from monai_attn.visualize import capture_attention


def unet(dims: int = 2) -> UNet:
    return UNet(dims, 1, 3, (8, 16, 32), (2, 2), num_res_units=2)


def segresnet() -> SegResNet:
    return SegResNet(2, 8, 1, 3, blocks_down=(1, 1), blocks_up=(1,))


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1))


def everywhere(path: str, conv: nn.Module) -> bool:
    return True


def focused(network: nn.Module) -> dict[str, FocusedConv]:
    return {path: module for path, module in network.named_modules() if isinstance(module, FocusedConv)}


def strengthen(network: nn.Module, strength: float = 1.0) -> nn.Module:
    for module in network.modules():
        if isinstance(module, ZeroInitGate):
            nn.init.constant_(module.strength, strength)
    return network


@pytest.mark.parametrize(("dims", "dilation", "bias"), [(1, 2, True), (2, 1, False), (2, 2, True), (3, 1, True)])
def test_a_focused_convolution_is_at_first_the_plain_one_and_then_the_attentive_sum_of_the_scales(dims, dilation, bias):
    kind, convolve = ((nn.Conv1d, F.conv1d), (nn.Conv2d, F.conv2d), (nn.Conv3d, F.conv3d))[dims - 1]
    conv = kind(4, 6, 3, padding=dilation, dilation=dilation, bias=bias).double()
    focus, x = FocusedConv(conv, (1, 2, 4)), torch.randn(2, 4, *(9, 8, 7)[:dims]).double()
    torch.testing.assert_close(focus(x), conv(x), atol=1e-12, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(focus(x), conv(x), atol=1e-12, rtol=0)
    strengthen(focus, 0.3)
    attention = torch.softmax(focus.focus.attention(x), dim=1)
    branches = [convolve(x, conv.weight, conv.bias, 1, scale, scale) for scale in (1, 2, 4)]
    expected = 0.7 * conv(x) + 0.3 * sum(attention[:, k : k + 1] * branch for k, branch in enumerate(branches))
    torch.testing.assert_close(focus(x), expected, atol=1e-12, rtol=0)


def test_without_a_bias_the_sum_of_the_scales_is_exact():
    conv, x = nn.Conv2d(4, 6, 3, padding=1, bias=False), torch.randn(2, 4, 9, 8)
    assert torch.equal(FocusedConv(conv, (1, 3, 5, 7))(x), conv(x))


@pytest.mark.parametrize("bias", [True, False])
def test_kernel_and_bias_are_the_plain_ones_and_their_old_keys_load_into_copies_too(bias):
    conv, other = (nn.Conv2d(4, 6, 3, padding=1, bias=bias) for _ in range(2))
    focus = FocusedConv(conv, (1, 2))
    assert focus.focus.conv.weight is conv.weight
    assert focus.bias is conv.bias
    for layer in (focus, copy.deepcopy(focus), pickle.loads(pickle.dumps(focus))):
        result = layer.load_state_dict(other.state_dict(), strict=False)
        assert result.unexpected_keys == []
        assert {key.split(".")[1] for key in result.missing_keys} == {"attention", "gate"}
        assert torch.equal(layer.focus.conv.weight, other.weight)
        assert not bias or torch.equal(layer.bias, other.bias)
    focus.load_state_dict(focus.state_dict())


def test_a_gate_goes_from_one_scale_to_the_softmax_and_its_weights_sum_to_one():
    gate, logits = ZeroInitGate(2), torch.randn(2, 4, 3, 4, 5)
    assert torch.equal(gate(logits), torch.eye(4)[2].reshape(1, 4, 1, 1, 1).expand(2, 4, 3, 4, 5))
    for strength in (0.5, 1.0):
        strengthen(gate, strength)
        torch.testing.assert_close(gate(logits).sum(dim=1), torch.ones(2, 3, 4, 5))
    torch.testing.assert_close(gate(logits), torch.softmax(logits, dim=1))
    assert list(gate.state_dict()) == ["strength"]


@pytest.mark.parametrize(
    ("options", "eligible"),
    [
        ({}, True),
        ({"padding": 2, "dilation": 2}, True),
        ({"padding": "same", "dilation": 3, "bias": False}, True),
        ({"padding": 0}, False),
        ({"stride": (1, 2)}, False),
        ({"groups": 4}, False),
        ({"kernel_size": 5, "padding": 2}, False),
        ({"dilation": (1, 2), "padding": (1, 2)}, False),
        ({"padding_mode": "reflect"}, False),
        ({"in_channels": 1}, False),
    ],
)
def test_convolutions_of_size_3_and_stride_1_that_keep_the_size_are_eligible(options, eligible):
    conv = nn.Conv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1, **options})
    network = nn.Sequential(conv, nn.ConvTranspose2d(4, 4, 3, padding=1))
    if eligible:
        x = torch.randn(1, 4, 9, 9)
        expected = network(x)
        torch.testing.assert_close(autofocus(network, where=everywhere)(x), expected)
        assert list(focused(network)) == ["0"]
    else:
        with pytest.raises(ValueError, match=r"chooses none of the 0 eligible convolutions of Sequential: \[\]"):
            autofocus(network, where=everywhere)


def test_convolutions_with_weight_norm_or_with_a_block_behind_them_are_left_alone():
    network = plain()
    nn.utils.parametrizations.weight_norm(network[0])
    recalibrate(network, positions="P1", places=Places(["1"], [], None, None, divisor=4))
    with pytest.raises(ValueError, match="the 0 eligible"):
        autofocus(network, where=everywhere)
    assert network[1].recalibration.out_channels == 4


def test_the_last_are_counted_in_the_order_in_which_the_network_runs_them():
    net = autofocus(AttentionUnet(2, 1, 3, (8, 16, 32), (2, 2)), last=1)
    assert list(focused(net)) == ["model.1.merge.conv"]  # its modules end with the bottleneck
    autofocus(net, last=1)
    assert list(focused(net)) == ["model.1.merge.conv", "model.1.submodule.1.merge.conv"]


def test_a_second_call_never_takes_the_inside_of_an_autofocus_layer():
    network = AFNet(2, 1, 3, n_autofocus=1, channels=(4, 4, 6, 6))
    inner = [module for module in network.modules() if isinstance(module, AutofocusConv)]
    autofocus(network, where=everywhere, dilations=(1, 2, 3))
    assert all(type(layer.attention[0]) is nn.Conv2d for layer in inner)
    with pytest.raises(ValueError, match="the 0 eligible"):
        autofocus(network, where=everywhere)


def test_where_chooses_by_the_path_and_the_module():
    net = autofocus(segresnet(), where=lambda path, conv: path.startswith("up_layers") and conv.in_channels == 8)
    assert list(focused(net)) == ["up_layers.0.0.conv1.conv", "up_layers.0.0.conv2.conv"]


def test_scales_are_multiples_of_each_convolutions_own_dilation_by_default():
    net = autofocus(HighResNet(2, 1, 3), where=everywhere)  # dilations 1, 2 and 4
    scales = {tuple(layer.focus.dilations) for layer in focused(net).values()}
    assert scales == {(1, 3, 5, 7), (2, 6, 10, 14), (4, 12, 20, 28)}


def test_a_shared_convolution_is_replaced_at_all_its_places():
    net = DynUNet(2, 1, 3, [3] * 3, [1, 2, 2], [2] * 2, filters=(4, 8, 16)).eval()
    keys = len(net.state_dict())
    autofocus(net, last=1)
    block = net.upsamples[1].conv_block
    assert isinstance(block.conv2.conv, FocusedConv)
    assert net.skip_layers.upsample.conv_block is block
    assert len(net.state_dict()) - keys == 2 * 5  # four of the attention and the strength, under both names
    shared = nn.Conv2d(4, 4, 3, padding=1)
    network = autofocus(nn.Sequential(shared, nn.ReLU(), shared), last=1, size=(8, 8))
    assert network[0] is network[2]
    assert isinstance(network[0], FocusedConv)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_output_is_unchanged_to_rounding_and_changes_with_the_strength(dims):
    net, x = unet(dims).double().eval(), torch.rand(1, 1, *[16] * dims).double()
    expected = net(x)
    autofocus(net, where=everywhere)
    assert len(focused(net)) > 4
    assert not any(module.training for module in net.modules())
    torch.testing.assert_close(net(x), expected, atol=1e-12, rtol=0)
    assert (strengthen(net)(x) - expected).abs().max() > 0.01
    result = net.load_state_dict(unet(dims).state_dict(), strict=False)  # of a plain network
    assert result.unexpected_keys == []
    assert all(".focus.attention." in key or ".focus.gate." in key for key in result.missing_keys)


def test_capture_shows_the_weights_in_use():
    net, x = autofocus(unet(), last=1).eval(), torch.rand(1, 1, 16, 16)
    for strength in (0.0, 1.0):
        with capture_attention(strengthen(net, strength)) as maps:
            net(x)
        ((path, weights),) = maps.items()
        assert path == "model.2.1.conv.unit0.conv.focus.gate"
        assert weights[0].shape == (4, 16, 16)
        assert (weights[:, 0].min() == 1) == (strength == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either last=<number> or where="),
        ({"last": 1, "where": everywhere}, "either last=<number> or where="),
        ({"last": 7}, "last=7 must be .*SegResNet runs 6"),
        ({"last": 0}, "last=0 must be .*SegResNet runs 6"),
        ({"where": lambda path, conv: "decoder" in path}, r"none of the 6 .* SegResNet: \['down_layers.0.1.conv1.c"),
        (
            {"last": 1, "dilations": (2, 4)},
            r"dilations=\(2, 4\) must contain the dilation of up_layers.0.0.conv2.conv, 1",
        ),
        ({"last": 1, "dilations": (3, 1)}, "dilations must be rising integers"),
    ],
)
def test_bad_options_raise_and_leave_the_network_alone(options, message):
    net = segresnet()
    with pytest.raises(ValueError, match=message):
        autofocus(net, **options)
    assert focused(net) == {}
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_of_ones_own_needs_the_size_of_an_image_for_last():
    network = plain()
    with pytest.raises(TypeError, match="of Sequential are not known"):
        autofocus(network, last=1)
    autofocus(network, last=1, size=(8, 8))
    assert list(focused(network)) == ["1"]
