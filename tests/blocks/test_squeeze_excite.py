# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from einops import einsum, rearrange, reduce
from monai.networks.blocks import ChannelSELayer
from torch import nn

from monai_attn.blocks import ChannelGate, ChannelSE, ChannelSpatialSE, SpatialGate, SpatialSE, get_se_layer
from monai_attn.blocks.squeeze_excite import complete_se

from ..conftest import count

AGGREGATIONS = ["max", "add", "mul", "mul_gate", "concat"]
SIZES = {1: (11,), 2: (7, 6), 3: (5, 3, 4)}
BLOCKS = {
    "cse": ChannelSE,
    "sse": SpatialSE,
    **{
        name: lambda dims, channels, name=name, **kwargs: ChannelSpatialSE(dims, channels, aggregation=name, **kwargs)
        for name in AGGREGATIONS
    },
}
# eqs. 1 to 7 as printed, and the sentence below eq. 6 (mul_gate)
EQUATIONS = {
    "cse": lambda u, gc, gs: u * gc,
    "sse": lambda u, gc, gs: u * gs,
    "max": lambda u, gc, gs: torch.maximum(u * gc, u * gs),
    "add": lambda u, gc, gs: u * gc + u * gs,
    "mul": lambda u, gc, gs: u**2 * gc * gs,
    "mul_gate": lambda u, gc, gs: u * gc * gs,
    "concat": lambda u, gc, gs: torch.cat([u * gc, u * gs], dim=1),
}


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    return 1 / (1 + torch.exp(-x))


def channel_gate(block: ChannelSE, u: torch.Tensor) -> torch.Tensor:
    z = reduce(u, "b c ... -> b c", "mean")
    w2, w1 = block.fc1.weight, block.fc2.weight
    b2 = 0 if block.fc1.bias is None else block.fc1.bias
    b1 = 0 if block.fc2.bias is None else block.fc2.bias
    hidden = (einsum(z, w2, "b c, h c -> b h") + b2).clamp(min=0)
    gate = sigmoid(einsum(hidden, w1, "b h, c h -> b c") + b1)
    return gate.reshape(*gate.shape, *[1] * (u.ndim - 2))


def spatial_gate(block: SpatialSE, u: torch.Tensor) -> torch.Tensor:
    weight = rearrange(block.conv.weight, "one c ... -> (one c ...)")
    bias = 0 if block.conv.bias is None else block.conv.bias
    return sigmoid(einsum(u, weight, "b c ..., c -> b ...") + bias).unsqueeze(1)


def restated(name: str, block: nn.Module, u: torch.Tensor) -> torch.Tensor:
    gc = None if name == "sse" else channel_gate(block if name == "cse" else block.channel, u)
    gs = None if name == "cse" else spatial_gate(block if name == "sse" else block.spatial, u)
    return EQUATIONS[name](u, gc, gs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_equals_its_equation(name, dtype, tolerance):
    for dims, bias in ((1, False), (2, True), (3, True)):
        block = BLOCKS[name](dims, 6, bias=bias).to(dtype)
        u = torch.randn(2, 6, *SIZES[dims], dtype=dtype)
        torch.testing.assert_close(block(u), restated(name, block, u), atol=tolerance, rtol=tolerance)


def test_max_of_signed_features_is_not_the_features_times_the_larger_map():
    block = ChannelSpatialSE(2, 6).double()
    u = 3 * torch.randn(2, 6, 7, 6, dtype=torch.float64)
    short = u * torch.maximum(block.channel(u), block.spatial(u))
    positive = u >= 0
    torch.testing.assert_close(block(u)[positive], short[positive], atol=1e-12, rtol=0)
    assert (block(u) - short)[~positive].abs().max() > 1e-2


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_spatial_map_at_a_position_depends_on_that_position_alone(dims):
    u = torch.randn(1, 3, *SIZES[dims], dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(SpatialGate(dims, 3).double(), u)
    voxels = u[0, 0].numel()
    depends = jacobian.reshape(voxels, 3, voxels).abs().sum(dim=1) > 0
    assert torch.equal(depends, torch.eye(voxels, dtype=torch.bool))


def test_gate_bias_is_where_the_maps_start():
    block = get_se_layer(("scse", {"gate_bias": 3.0}), 2, 6)
    u = 1e-3 * torch.rand(2, 6, 7, 8)
    for gate, last in ((block.channel, block.channel.fc2), (block.spatial, block.spatial.conv)):
        nn.init.zeros_(last.weight)
        torch.testing.assert_close(gate(u), torch.full_like(gate(u), 0.953), atol=1e-3, rtol=0)
    for kind in (ChannelSE, SpatialSE):
        with pytest.raises(ValueError, match="sets a bias, and there is none"):
            kind(2, 6, bias=False, gate_bias=3.0)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_channel_map_depends_on_every_position_and_channel(dims):
    gate = ChannelGate(dims, 4).double()
    for parameter in gate.parameters():
        nn.init.uniform_(parameter, 0.1, 0.5)  # no dead hidden unit
    u = torch.rand(1, 4, *SIZES[dims], dtype=torch.float64)
    assert (torch.autograd.functional.jacobian(gate, u) != 0).all()


@pytest.mark.parametrize(("dims", "reduction"), [(1, 1), (2, 2), (3, 4)])
def test_channel_se_equals_channel_se_layer_of_monai_with_its_weights(dims, reduction):
    theirs = ChannelSELayer(dims, 8, r=reduction)
    ours = ChannelSE(dims, 8, reduction=reduction)
    names = {"fc1.weight": "fc.0.weight", "fc1.bias": "fc.0.bias", "fc2.weight": "fc.2.weight", "fc2.bias": "fc.2.bias"}
    state = theirs.state_dict()
    ours.load_state_dict({mine: state[other] for mine, other in names.items()})
    u = torch.randn(2, 8, *SIZES[dims])
    torch.testing.assert_close(ours(u), theirs(u), atol=0, rtol=0)


def test_add_equals_the_scse_module_of_segmentation_models_with_its_weights():
    cse = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Sigmoid())
    sse = nn.Sequential(nn.Conv2d(8, 1, 1), nn.Sigmoid())
    ours = ChannelSpatialSE(2, 8, aggregation="add")
    ours.load_state_dict(
        {
            "channel.fc1.weight": cse[1].weight.flatten(1),
            "channel.fc1.bias": cse[1].bias,
            "channel.fc2.weight": cse[3].weight.flatten(1),
            "channel.fc2.bias": cse[3].bias,
            "spatial.conv.weight": sse[0].weight,
            "spatial.conv.bias": sse[0].bias,
        }
    )
    u = torch.randn(2, 8, 9, 7)
    torch.testing.assert_close(ours(u), u * cse(u) + u * sse(u), atol=1e-6, rtol=0)


COUNTS = [
    (64, 2, 4192, 4096, 65, 64, 4257, 4160),
    (28, 2, 826, 784, 29, 28, 855, 812),
    (10, 2, 115, 100, 11, 10, 126, 110),
    (64, 4, 2128, 2048, 65, 64, 2193, 2112),
    (64, 8, 1096, 1024, 65, 64, 1161, 1088),
    (64, 16, 580, 512, 65, 64, 645, 576),
]


@pytest.mark.parametrize(("channels", "r", "cse", "cse0", "sse", "sse0", "scse", "scse0"), COUNTS)
def test_a_block_has_the_number_of_parameters_of_the_paper(channels, r, cse, cse0, sse, sse0, scse, scse0):
    for dims in (1, 2, 3):
        for bias, expected in ((True, (cse, sse, scse)), (False, (cse0, sse0, scse0))):
            blocks = (
                ChannelSE(dims, channels, reduction=r, bias=bias),
                SpatialSE(dims, channels, bias=bias),
                ChannelSpatialSE(dims, channels, reduction=r, bias=bias),
            )
            assert tuple(map(count, blocks)) == expected


@pytest.mark.parametrize(("name", "factor"), [(name, 2 if name == "concat" else 1) for name in BLOCKS])
def test_out_channels_tells_the_channels_of_the_output_and_is_read_only(name, factor):
    block = BLOCKS[name](2, 6)
    assert block.out_channels == 6 * factor == block(torch.rand(1, 6, 4, 4)).shape[1]
    with pytest.raises(AttributeError):
        block.out_channels = 3


@pytest.mark.parametrize(("channels", "reduction"), [(1, 2), (8, 16), (8, 0), (8, -2)])
@pytest.mark.parametrize("cls", [ChannelSE, ChannelSpatialSE])
def test_a_reduction_that_leaves_no_hidden_channel_raises_and_names_the_numbers(cls, channels, reduction):
    with pytest.raises(ValueError, match=rf"in_channels={channels}.*got {reduction}"):
        cls(2, channels, reduction=reduction)


@pytest.mark.parametrize("name", BLOCKS)
def test_an_input_with_more_axes_than_the_block_has_raises(name):
    """Its last axis has as many voxels as it has channels, so that the matrices fit."""
    with pytest.raises(RuntimeError, match=r"Expected|shapes cannot be multiplied"):
        BLOCKS[name](2, 8)(torch.rand(1, 8, 8, 8, 8))


@pytest.mark.parametrize("aggregation", ["sum", "MAX", None])
def test_an_unknown_aggregation_raises(aggregation):
    with pytest.raises(ValueError, match="concat"):
        ChannelSpatialSE(2, 4, aggregation=aggregation)


@pytest.mark.parametrize(
    ("se", "expected"),
    [
        ("scse", ChannelSpatialSE(2, 8)),
        ("cse", ChannelSE(2, 8)),
        (["sse", {"bias": False}], SpatialSE(2, 8, bias=False)),
        (("scse", {"reduction": 4, "aggregation": "add"}), ChannelSpatialSE(2, 8, reduction=4, aggregation="add")),
        (None, nn.Identity()),
    ],
)
def test_a_block_is_made_by_its_name_and_arguments(se, expected):
    block = get_se_layer(se, 2, 8)
    assert str(block) == str(expected)
    assert getattr(block, "aggregate", None) is getattr(expected, "aggregate", None)


@pytest.mark.parametrize("se", ["SCSE", "", ("se", {}), ("scse", {"aggregation": "sum"}), ("cse", {"reduction": 0})])
def test_an_unknown_name_or_bad_argument_raises(se):
    with pytest.raises(ValueError):  # noqa: PT011
        get_se_layer(se, 2, 8)


def test_defaults_complete_only_what_a_block_takes_and_its_name_does_not_give():
    defaults = {"reduction": 4, "aggregation": "add"}
    assert complete_se("scse", **defaults) == ("scse", defaults)
    assert complete_se(("scse", {"reduction": 8}), **defaults) == ("scse", {"reduction": 8, "aggregation": "add"})
    assert complete_se("sse", **defaults) == ("sse", {})
    assert complete_se(None, **defaults) is None
