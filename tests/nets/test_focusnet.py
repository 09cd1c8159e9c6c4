# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from monai_attn.nets import FocusNet
from monai_attn.visualize import capture_attention

from ..conftest import count

SMALL = {"channels": (8, 16, 16, 32, 32), "se_reduction": 4}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return FocusNet(2, 3, 1, **SMALL).eval()


@pytest.mark.parametrize(
    ("variant", "in_channels", "expected"),
    [("isbi2019", 3, 18_933_497), ("series", 3, 19_063_933), ("isbi2019", 1, 18_926_649), ("series", 1, 19_057_085)],
)
def test_the_number_of_parameters_is_that_of_the_authors_code(variant, in_channels, expected):
    with torch.device("meta"):
        network = FocusNet(2, in_channels, 1, variant=variant)
    assert count(network) == expected
    assert sum(buffer.numel() for name, buffer in network.named_buffers() if "running" in name) == 9_640


def test_the_parts_have_the_numbers_of_parameters_of_the_table():
    with torch.device("meta"):
        network = FocusNet(2, 3, 1)
    assert count(network.attention.stem) == 864 + 64
    assert count(network.attention.encoders[0][0]) == 19_680
    assert count(network.attention.decoders[0].up) == 262_400
    assert count(network.stem) == 9_472 + 128
    assert count(network.levels[0].se1) == 512


def test_intermediate_sizes_are_those_of_the_table():
    with torch.device("meta"):
        network, image = FocusNet(2, 3, 1), torch.rand(1, 3, 64, 96)
    sizes = {}
    for name, module in network.named_modules():
        module.register_forward_hook(
            lambda module, args, output, name=name: (
                sizes.update({name: tuple(output.shape[1:])}) if isinstance(output, torch.Tensor) else None
            )
        )
    assert network(image).shape == (1, 1, 64, 96)
    expected = {
        "attention.stem": (32, 64, 96),
        "attention.encoders.0": (64, 32, 48),
        "attention.encoders.1": (128, 16, 24),
        "attention.encoders.2": (256, 8, 12),
        "attention.decoders.0": (256, 16, 24),
        "attention.decoders.1": (128, 32, 48),
        "attention.decoders.2": (64, 64, 96),
        "stem": (64, 64, 96),
        "levels.0": (64, 32, 48),
        "levels.1": (128, 16, 24),
        "levels.2": (256, 8, 12),
        "levels.3": (512, 4, 6),
        "decoders.0": (256, 8, 12),
        "decoders.1": (128, 16, 24),
        "decoders.2": (64, 32, 48),
        "last_decoder": (32, 64, 96),
        "thinning": (4, 64, 96),
    }
    assert {name: sizes[name] for name in expected} == expected


def test_capture_sees_the_three_gates_and_all_excitations(network):
    with capture_attention(network) as maps, torch.no_grad():
        network(torch.rand(1, 3, 64, 96))
    gates = {name: tuple(value.shape) for name, value in maps.items() if "se" not in name}
    assert gates == {
        "levels.0.gate": (1, 16, 64, 96),
        "levels.1.gate": (1, 16, 32, 48),
        "levels.2.gate": (1, 32, 16, 24),
    }
    assert len(maps) == 3 + 7
    assert all(float(value.min()) >= 0 and float(value.max()) <= 1 for value in maps.values())


def set_gates(network, bias):
    """Make the logits of every gate constant."""
    for decoder in network.attention.decoders:
        for conv in (decoder.residual.conv2, decoder.residual.shortcut):
            torch.nn.init.zeros_(conv.weight)
            torch.nn.init.zeros_(conv.bias)
        torch.nn.init.constant_(decoder.residual.conv2.bias, bias)


def test_a_zero_gate_halves_the_features_between_the_two_excitations(network):
    set_gates(network, 0)
    level = network.levels[0]
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        features = network.stem(x)
        expected = level.down(level.se2(0.5 * level.se1(level.residual(features))))
        output = level(features, network.attention(x)[0])
    assert torch.equal(output, expected)


def test_open_gates_give_the_network_without_the_attention_branch():
    network = FocusNet(2, 3, 1, gate_bias=50.0, **SMALL).eval()
    set_gates(network, 0)
    plain = FocusNet(2, 3, 1, gated=False, **SMALL).eval()
    state = {name: value for name, value in network.state_dict().items() if not name.startswith("attention")}
    plain.load_state_dict(state)
    x = torch.rand(2, 3, 48, 40)
    with torch.no_grad():
        torch.testing.assert_close(network(x), plain(x), atol=1e-6, rtol=0)


def test_closed_gates_let_nothing_of_the_image_through_but_the_first_skip(network):
    set_gates(network, -200)
    bottoms = []
    network.levels[3].register_forward_hook(lambda module, args, output: bottoms.append(output))
    with torch.no_grad():
        outputs = [network(torch.rand(1, 3, 32, 48)) for _ in range(2)]
    assert torch.equal(*bottoms)
    assert not torch.equal(*outputs)


def test_the_loss_reaches_every_parameter_of_the_attention_branch_through_the_gates_alone():
    torch.manual_seed(0)
    network = FocusNet(2, 3, 1, **SMALL)
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    dead = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    # batch norm takes away the bias of the convolution before it, and all that is left of its gradient is rounding
    assert [name for name in dead if not name.endswith("conv1.bias")] == []

    network.zero_grad(set_to_none=True)
    for level in network.levels:
        level.gate.register_forward_hook(lambda module, args, output: output.detach())
    network(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert [name for name, value in network.attention.named_parameters() if value.grad is not None] == []


def test_training_drops_at_the_bottleneck_only_unless_everywhere_is_asked_for():
    x = torch.rand(2, 3, 32, 32)
    for everywhere, expected in ((False, 1), (True, 24)):
        network = FocusNet(2, 3, 1, dropout_everywhere=everywhere, **SMALL)
        active = [module for module in network.modules() if isinstance(module, torch.nn.Dropout) and module.p > 0]
        assert len(active) == expected
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_full_pre_activation_adds_one_norm_to_every_block_of_stride_one():
    first, full = (FocusNet(2, 3, 1, preact=preact, **SMALL) for preact in ("first", "full"))
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules()) for net in (first, full)]
    blocks = [m for m in first.modules() if type(m).__name__ == "PreActResidual" and m.conv1.stride == (1, 1)]
    assert norms[1] - norms[0] == len(blocks)


def test_batch_norm_has_the_constants_of_keras():
    norms = [module for module in FocusNet(2, 3, 1, **SMALL).modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(module.eps, module.momentum) for module in norms} == {(1e-3, 0.01)}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"channels": (8, 16)}, "channels"),
        ({"channels": (4, 16, 16)}, "channels"),
        ({"variant": "miccai"}, "isbi2019"),
        ({"preact": "none"}, "first"),
        ({"padding": "same"}, "symmetric"),
        ({"se_reduction": 64}, r"se_reduction must be at most the smallest of \(16, 16, 32, 32\), got 64"),
    ],
    ids=str,
)
def test_an_impossible_option_raises(option, message):
    with pytest.raises(ValueError, match=message):
        FocusNet(2, 3, 1, **{**SMALL, **option})
