# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from monai_attn.blocks import ChannelSE, ChannelSpatialSE, Gate, SpatialSE
from monai_attn.nets import SCSESDNet, SCSEUNet
from monai_attn.visualize import capture_attention


@pytest.mark.parametrize(
    ("cls", "shapes"),
    [
        (ChannelSE, {"gate": (2, 6, 1, 1)}),
        (SpatialSE, {"gate": (2, 1, 5, 7)}),
        (ChannelSpatialSE, {"channel.gate": (2, 6, 1, 1), "spatial.gate": (2, 1, 5, 7)}),
    ],
)
def test_the_maps_of_a_block_have_its_shapes_and_multiply_its_input(cls, shapes):
    block, u = cls(2, 6), torch.randn(2, 6, 5, 7)
    with capture_attention(block) as maps:
        assert maps == {}
        output = block(u)
    assert {name: tuple(attention.shape) for name, attention in maps.items()} == shapes
    expected = torch.stack([u * attention for attention in maps.values()]).amax(dim=0)
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
    assert not any(attention.requires_grad for attention in maps.values())
    output.sum().backward()  # the graph is whole
    assert all(parameter.grad is not None for parameter in block.parameters())


def test_the_maps_of_a_network_come_in_the_order_of_computation_with_the_size_of_their_level():
    network = SCSESDNet(2, 1, 4, features=4, depth=2, se="sse", positions="P6").eval()
    with capture_attention(network) as maps:
        network(torch.rand(1, 1, 13, 10))
    assert [(name, tuple(attention.shape[2:])) for name, attention in maps.items()] == [
        ("encoder_se.0.gate", (13, 10)),
        ("encoder_se.1.gate", (7, 5)),
        ("bottleneck_se.gate", (4, 3)),
        ("decoder_se.0.gate", (7, 5)),
        ("decoder_se.1.gate", (13, 10)),
        ("classifier_se.gate", (13, 10)),
    ]
    assert all(attention.min() >= 0 and attention.max() <= 1 for attention in maps.values())


def test_capturing_changes_no_output_and_leaves_no_hook_even_after_an_error():
    network = SCSEUNet(3, 1, 2, features=2, depth=1).eval()
    x = torch.rand(1, 1, 6, 5, 4)
    expected = network(x)
    with capture_attention(network) as maps:
        torch.testing.assert_close(network(x), expected, atol=0, rtol=0)
    before = {name: attention.clone() for name, attention in maps.items()}
    network(torch.rand(1, 1, 6, 5, 4))
    assert before.keys() == maps.keys()
    assert all(torch.equal(before[name], maps[name]) for name in maps)
    with pytest.raises(RuntimeError), capture_attention(network):
        network(torch.rand(1, 3, 6, 5, 4))
    assert not any(module._forward_hooks for module in network.modules())


def test_a_second_pass_replaces_the_maps_of_the_first_in_its_own_order():
    gates = nn.ModuleDict({"a": Gate(), "b": Gate()})
    with capture_attention(gates) as maps:
        for value, order in enumerate(("ab", "ba")):
            for name in order:
                gates[name](torch.full((1, 1, 2), float(value)))
            assert "".join(maps) == order
    assert all((attention == torch.tensor(1.0).sigmoid()).all() for attention in maps.values())


def test_a_gate_inside_a_foreign_network_is_seen():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), ChannelSE(2, 4), nn.Sequential(Gate("softmax")))
    with capture_attention(network) as maps:
        output = network(torch.rand(1, 1, 6, 6))
    assert list(maps) == ["1.gate", "2.0"]
    assert torch.equal(maps["2.0"], output)


@pytest.mark.parametrize("network", [nn.Conv2d(1, 1, 1), torch.jit.script(ChannelSE(2, 4))])
def test_a_network_without_visible_gates_raises_and_is_named(network):
    with pytest.raises(ValueError, match=f"{type(network).__name__} has no attention gate"), capture_attention(network):
        pass
