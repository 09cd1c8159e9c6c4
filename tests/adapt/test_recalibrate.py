# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import io

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import (
    UNETR,
    AttentionUnet,
    BasicUNet,
    DynUNet,
    FlexibleUNet,
    MedNeXt,
    SegResNet,
    SegResNetDS,
    SegResNetVAE,
    SwinUNETR,
    UNet,
    VNet,
)
from torch import nn

from monai_attn.adapt import Places, places_of, recalibrate, stream_of
from monai_attn.adapt.places import _PLACES
from monai_attn.adapt.recalibrate import ZeroInitResidual
from monai_attn.blocks import ChannelSE, ChannelSpatialSE, SpatialSE
from monai_attn.nets import EGCNN
from monai_attn.visualize import capture_attention

CHANNELS, STRIDES = (8, 16, 32, 64), (2, 2, 2)


def unet(dims: int = 2, out_channels: int = 3) -> UNet:
    return UNet(dims, 1, out_channels, CHANNELS, STRIDES, num_res_units=1)


def segresnet(dims: int = 2, **kwargs) -> SegResNet:
    return SegResNet(dims, 8, 1, 3, blocks_down=(1, 1, 1, 1), **kwargs)


def segresnet_ds(**kwargs) -> SegResNetDS:
    return SegResNetDS(2, 8, 1, 3, blocks_down=(1, 1, 1, 1), **kwargs)


def dynunet(**kwargs) -> DynUNet:
    return DynUNet(2, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=CHANNELS, **kwargs)


def unetr() -> UNETR:
    pytest.importorskip("einops")
    sizes = {"feature_size": 8, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2}
    return UNETR(1, 3, 32, spatial_dims=2, norm_name="batch", **sizes)


def swin_unetr() -> SwinUNETR:
    pytest.importorskip("einops")
    return SwinUNETR(1, 3, feature_size=12, depths=(1,) * 4, num_heads=(1,) * 4, spatial_dims=2, norm_name="batch")


NETS = {
    "UNet": unet,
    "BasicUNet": lambda: BasicUNet(2, 1, 3, (8, 8, 16, 16, 32, 8)),
    "VNet": lambda: VNet(2, 1, 3),
    "SegResNet": segresnet,
    "SegResNetDS": segresnet_ds,
    "DynUNet": dynunet,
    "AttentionUnet": lambda: AttentionUnet(2, 1, 3, (8, 16, 32), (2, 2)),
    "FlexibleUNet": lambda: FlexibleUNet(1, 3, "resnet10"),
    "FlexibleUNet of EfficientNet": lambda: FlexibleUNet(1, 3, "efficientnet-b0"),
    "UNETR": unetr,
    "SwinUNETR": swin_unetr,
}


def image(batch: int = 1, side: int = 32) -> torch.Tensor:
    return torch.rand(batch, 1, side, side)


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in network.named_modules() if path.endswith(".recalibration")}


# --- the table of places -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_places_are_the_modules_that_give_the_features_of_the_networks_stream(name):
    net, x = NETS[name]().eval(), image()
    places = places_of(net)
    seen: dict[str, torch.Tensor] = {}
    bottleneck, classifier = places.bottleneck, places.classifier
    for path in (*places.encoders, *places.decoders, *([bottleneck] if bottleneck else []), classifier):
        net.get_submodule(path).register_forward_hook(lambda *args, path=path: seen.update({path: args[2].clone()}))
    encoder, decoder, logits = stream_of(net)(x)
    for path, feature in zip(places.encoders, encoder):
        assert torch.equal(seen[path], feature), path
    for path, feature in zip(places.decoders, decoder, strict=True):
        assert torch.equal(seen[path], feature), path
    assert torch.equal(seen[classifier], logits)
    if name == "UNet":  # the stream takes the last down path for the bottleneck, as the bottom layer keeps its size
        assert len(places.encoders) == len(encoder) == 3
        assert seen[bottleneck].shape == (1, 64, 4, 4)
    elif bottleneck:
        assert torch.equal(seen[bottleneck], encoder[-1])


@pytest.mark.parametrize(
    ("net", "places"),
    [
        (lambda: UNet(2, 1, 3, (4, 8), (2,)), Places(["model.0"], [], "model.1.submodule", "model.2", (2, 2))),
        (
            lambda: AttentionUnet(2, 1, 3, (4, 8), (2,)),
            Places(["model.0"], ["model.1.merge"], "model.1.submodule", "model.2", (2, 2)),
        ),
        (
            lambda: SegResNetDS(2, 8, 1, 3, blocks_down=(1,)),
            Places([], [], "encoder.layers.0.blocks", "up_layers.0.head", [1, 1]),
        ),
        (
            lambda: MedNeXt(2, 4, 1, 3, blocks_down=(1, 1), blocks_up=(1, 1)),
            Places(["enc_stages.0", "enc_stages.1"], ["dec_stages.0", "dec_stages.1"], "bottleneck", "out_0", 4),
        ),
    ],
)
def test_the_shallowest_networks_and_mednext_have_the_places(net, places):
    assert places_of(net()) == places


def test_every_class_of_the_table_is_tested_here():
    assert {type(build()) for build in NETS.values()} | {MedNeXt} == set(_PLACES)


class OwnUNet(UNet):
    pass


class OwnEncoder(nn.Module):
    pass


@pytest.mark.parametrize(
    "network", [lambda: OwnUNet(2, 1, 3, CHANNELS, STRIDES), lambda: SegResNetVAE((16, 16), spatial_dims=2)]
)
def test_a_subclass_is_not_taken_for_its_parent_and_the_error_says_what_to_give(network):
    network = network()
    with pytest.raises(TypeError, match=rf"of {type(network).__name__} are not known, only .*BasicUNet.*Places\("):
        recalibrate(network)


def test_a_flexible_unet_of_an_unknown_encoder_raises():
    net = FlexibleUNet(1, 3, "resnet10")
    net.encoder = OwnEncoder()
    with pytest.raises(TypeError, match="encoder OwnEncoder are not known, only with EfficientNetEncoder, ResNet"):
        recalibrate(net)


# --- which blocks where --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("positions", "paths", "channels"),
    [
        ("P1", ["down_layers.0", "down_layers.1", "down_layers.2"], [8, 16, 32]),
        ("P2", ["up_layers.0", "up_layers.1", "up_layers.2"], [32, 16, 8]),
        ("P3", ["down_layers.3"], [64]),
        ("P4", ["conv_final"], [3]),
    ],
)
def test_a_position_has_its_blocks_of_the_channels_there(positions, paths, channels):
    found = blocks(recalibrate(segresnet(), positions=positions))
    assert list(found) == [f"{path}.recalibration" for path in paths]
    assert [block.out_channels for block in found.values()] == channels


@pytest.mark.parametrize("name", [*NETS, "MedNeXt"])
def test_p5_is_p1_and_p2_and_p6_is_everything(name):
    build = NETS.get(name, lambda: MedNeXt(2, 4, 1, 3, blocks_down=(1, 1), blocks_up=(1, 1)))
    bottleneck = places_of(build()).bottleneck is not None
    found = {
        position: set(blocks(recalibrate(build(), positions=position)))
        for position in ("P1", "P2", "P4", "P5", *(("P3", "P6") if bottleneck else ()))
    }
    assert found["P5"] == found["P1"] | found["P2"]
    assert len(found["P5"]) == len(found["P1"]) + len(found["P2"])
    if bottleneck:
        assert found["P6"] == found["P5"] | found["P3"] | found["P4"]


@pytest.mark.parametrize(("se", "kind"), [("scse", ChannelSpatialSE), ("cse", ChannelSE), ("sse", SpatialSE)])
def test_se_chooses_the_block_and_reduction_and_aggregation_reach_it(se, kind):
    found = blocks(recalibrate(segresnet(), se, "P1", reduction=4, aggregation="add"))
    assert {type(block) for block in found.values()} == {kind}
    hidden = [
        module.fc1.out_features for block in found.values() for module in block.modules() if hasattr(module, "fc1")
    ]
    assert hidden == ([] if se == "sse" else [2, 4, 8])
    if se == "scse":
        assert {block.aggregate.__name__ for block in found.values()} == {"_add"}


@pytest.mark.parametrize("name", ["UNet", "BasicUNet", "VNet", "SegResNet", "SegResNetDS", "DynUNet"])
def test_the_output_is_that_of_the_network_with_the_blocks_applied_to_its_features(name):
    net, x = NETS[name]().eval(), image()
    plain = copy.deepcopy(net)
    recalibrate(net, positions="P6")
    for path, block in blocks(net).items():
        plain.get_submodule(path.rpartition(".")[0]).register_forward_hook(lambda *args, block=block: block(args[2]))
    torch.testing.assert_close(net(x), plain(x), atol=0, rtol=0)


def test_the_features_that_a_stream_shows_are_the_recalibrated_ones():
    net, x = segresnet().eval(), image()
    first = stream_of(net)(x)[0][0]
    recalibrate(net, positions="P1")
    stream = stream_of(net)
    assert torch.equal(stream(x)[0][0], net.down_layers[0].recalibration(first))
    assert torch.equal(stream(x)[2], net(x))
    assert torch.equal(EGCNN(net).eval()(x), net(x))


def test_with_deep_supervision_every_output_of_training_is_there_and_p4_is_behind_the_finest():
    net = recalibrate(segresnet_ds(dsdepth=3), positions="P6").train()
    assert [output.shape[2] for output in net(image(2))] == [32, 16, 8]
    assert "up_layers.2.head.recalibration" in blocks(net)
    assert recalibrate(dynunet(deep_supervision=True), positions="P6").train()(image(2)).shape == (2, 2, 3, 32, 32)


def test_the_stacks_of_an_efficientnet_hold_its_own_blocks_only():
    net = recalibrate(NETS["FlexibleUNet of EfficientNet"]()).eval()
    net.encoder.set_swish(memory_efficient=False)
    assert net(image()).shape == (1, 3, 32, 32)


# --- state and copies ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_effect", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_every_old_key_stays_and_its_state_loads(name, zero_effect):
    net = NETS[name]()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    parameters = dict(net.named_parameters())
    assert recalibrate(net, positions="P5", zero_effect=zero_effect) is net
    state = net.state_dict()
    assert [key for key in state if ".recalibration." not in key] == list(before)
    assert all(torch.equal(state[key], value) for key, value in before.items())
    assert all(net.get_parameter(key) is value for key, value in parameters.items())
    result = net.load_state_dict(before, strict=False)
    assert result.unexpected_keys == []
    assert all(".recalibration." in key for key in result.missing_keys)
    net.load_state_dict(state)


@pytest.mark.parametrize("name", ["UNet", "VNet", "DynUNet"])
def test_a_copy_and_a_saved_network_have_blocks_of_their_own(name):
    net, x = recalibrate(NETS[name](), positions="P6").eval(), image()
    expected = net(x)
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(net), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), expected)
        for block in blocks(twin).values():
            nn.init.zeros_(block.spatial.conv.weight)
            nn.init.constant_(block.spatial.conv.bias, -9)
        assert torch.equal(net(x), expected)
        assert not torch.equal(twin(x), expected)


def test_new_blocks_have_the_networks_type_and_mode_and_the_dry_run_changes_nothing():
    net = VNet(2, 1, 3).double().train()
    net.down_tr32.eval()
    statistics = net.in_tr.conv_block.adn.N.running_mean.clone()
    recalibrate(net, positions="P1", zero_effect=True)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}
    assert [block.training for block in blocks(net).values()] == [True, False, True, True]
    assert net.training
    assert torch.equal(net.in_tr.conv_block.adn.N.running_mean, statistics)
    with torch.device("meta"):
        assert recalibrate(VNet()).in_tr.recalibration.channel.fc1.weight.is_meta


# --- no effect at first --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("se", "aggregation"),
    [("scse", "max"), ("scse", "add"), ("scse", "mul"), ("scse", "mul_gate"), ("cse", "max"), ("sse", "max")],
)
def test_with_zero_effect_the_output_is_exactly_the_same_whatever_the_block(se, aggregation, dtype):
    net, x = unet().to(dtype).eval(), image().to(dtype)
    expected = net(x)
    recalibrate(net, se, "P6", aggregation=aggregation, zero_effect=True)
    assert len(blocks(net)) == 7
    assert torch.equal(net(x), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net(x).isfinite().all()


def test_with_zero_effect_a_training_step_starts_with_the_same_output_and_the_same_gradients():
    net = VNet(2, 1, 3).train()
    twin, x = recalibrate(copy.deepcopy(net), positions="P6", zero_effect=True), image(2)
    outputs = []
    for network in (net, twin):
        torch.manual_seed(1)
        outputs.append(network(x))
        outputs[-1].square().sum().backward()
    assert torch.equal(*outputs)
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(twin.get_parameter(key).grad, parameter.grad, rtol=1e-3, atol=1e-5)


def test_a_blend_goes_from_the_identity_to_its_block():
    block, x = SpatialSE(2, 4), torch.randn(2, 4, 5, 6)
    blend = ZeroInitResidual(block)
    assert torch.equal(blend(x), x)
    nn.init.constant_(blend.strength, 0.25)
    torch.testing.assert_close(blend(x), 0.75 * x + 0.25 * block(x))
    nn.init.ones_(blend.strength)
    torch.testing.assert_close(blend(x), block(x))


def test_a_blend_learns_its_strength_first_and_its_block_after_one_step():
    blend, x = ZeroInitResidual(ChannelSpatialSE(2, 4)), torch.rand(2, 4, 5, 6)
    nn.init.ones_(blend.block.channel.fc1.bias)
    optimizer = torch.optim.SGD(blend.parameters(), lr=0.1)
    blend(x).square().sum().backward()
    assert blend.strength.grad != 0
    assert not any(parameter.grad.any() for parameter in blend.block.parameters())
    optimizer.step()
    optimizer.zero_grad()
    blend(x).square().sum().backward()
    assert all(parameter.grad.any() for parameter in blend.parameters())


def test_without_zero_effect_every_block_learns_at_once():
    net = recalibrate(segresnet(), positions="P5").train()
    for block in blocks(net).values():
        nn.init.ones_(block.channel.fc1.bias)
    (net(image(2)) * torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad.any() for block in blocks(net).values() for parameter in block.parameters())


# --- networks of one's own -----------------------------------------------------------------------------------------


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 6, 3, padding=1)

    def forward(self, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.conv(torch.cat([self.up(x), skip], dim=1))


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fine, self.down = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 8, 2, 2)
        self.up, self.head, self.spare = Up(), nn.Conv2d(6, 2, 1), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        return self.head(self.up(self.down(fine), fine)).softmax(1)


OWN = Places(["fine"], ["up"], bottleneck="down", classifier="head", divisor=2)


def test_a_network_of_ones_own_is_recalibrated_by_its_places_and_scripts_and_exports():
    net, x = recalibrate(Own().eval(), positions="P6", places=OWN), torch.rand(1, 2, 8, 6)
    assert [block.out_channels for block in blocks(net).values()] == [4, 8, 6, 2]
    for compiled in (torch.jit.script(net), torch.export.export(net, (x,)).module()):
        torch.testing.assert_close(compiled(x), net(x))


def test_places_can_leave_out_what_a_network_has_not():
    net = recalibrate(Own(), positions="P1", places=Places(["fine"], [], None, None, divisor=2, size=(8, 8)))
    assert list(blocks(net)) == ["fine.recalibration"]


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (OWN._replace(encoders=["coarse"]), r"Own has no module \['coarse'\]"),
        (OWN._replace(classifier="spare"), r"Own does not run its module \['spare'\]"),
    ],
)
def test_a_wrong_path_raises_and_leaves_the_network_alone(places, message):
    net = Own()
    with pytest.raises(ValueError, match=message):
        recalibrate(net, positions="P1", places=places)
    assert blocks(net) == {}
    assert not any(module._forward_hooks for module in net.modules())


class Reversed(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in reversed(self):
            x = module(x)
        return x


def test_a_sequential_with_a_forward_of_its_own_raises_and_its_last_module_works():
    net = Own()
    net.fine = Reversed(nn.ReLU(), net.fine)
    with pytest.raises(ValueError, match=r"\['fine'\] are nn.Sequential with a forward of their own"):
        recalibrate(net, places=OWN)
    assert blocks(net) == {}
    assert "fine.0.recalibration" in blocks(recalibrate(net, places=OWN._replace(encoders=["fine.0"])))


def test_a_configuration_recalibrates_a_network():
    config = {
        "network_def": {
            "_target_": "monai_attn.adapt.recalibrate",
            "network": {"_target_": "monai.networks.nets.SegResNet", "spatial_dims": 2, "init_filters": 8},
            "positions": "P1",
            "zero_effect": True,
        },
        "own": {
            "_target_": "monai_attn.adapt.recalibrate",
            "network": "$@class()",
            "places": {
                "_target_": "monai_attn.adapt.Places",
                "encoders": ["fine"],
                "decoders": ["up"],
                "bottleneck": None,
                "classifier": None,
                "divisor": 2,
            },
        },
        "class": Own,
    }
    parser = ConfigParser(config)
    network = parser.get_parsed_content("network_def")
    assert isinstance(network, SegResNet)
    assert [type(block) for block in blocks(network).values()] == [ZeroInitResidual] * 3
    assert list(blocks(parser.get_parsed_content("own"))) == ["fine.recalibration", "up.recalibration"]


def test_capture_names_the_gates_by_their_place():
    net = recalibrate(segresnet(), "cse", "P3")
    with capture_attention(net) as maps:
        net(image())
    assert {path: tuple(gate.shape) for path, gate in maps.items()} == {
        "down_layers.3.recalibration.gate": (1, 64, 1, 1)
    }


# --- bad arguments -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("second", [{}, {"positions": "P3"}])
def test_a_second_call_raises_and_says_what_to_do(second):
    net = recalibrate(segresnet(), positions="P1")
    with pytest.raises(ValueError, match=r"SegResNet has been recalibrated already; name all positions in one call"):
        recalibrate(net, **second)
    assert len(blocks(net)) == 3


@pytest.mark.parametrize(
    ("net", "positions", "message"),
    [
        (unetr, "P3", "needs the bottleneck of UNETR.*it has the modules for P1, P2, P4, P5"),
        (unetr, "P6", "positions='P6' needs the bottleneck of UNETR"),
        (lambda: segresnet(use_conv_final=False), "P4", "classifier of SegResNet.*for P1, P2, P3, P5"),
        (lambda: UNet(2, 1, 3, (8, 16), (2,)), "P5", "needs the decoders of UNet.*for P1, P3, P4"),
        (lambda: SegResNetDS(2, 8, 1, 3, blocks_down=(1,)), "P5", "needs the encoders and the decoders"),
    ],
)
def test_a_position_that_has_no_module_raises_and_is_named(net, positions, message):
    with pytest.raises(ValueError, match=message):
        recalibrate(net(), positions=positions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "concat"}, "aggregation='concat' would double the channels"),
        ({"aggregation": "sum"}, "sum"),
        ({"se": "se"}, "'se' is not a valid value"),
        ({"positions": "P7"}, "P7"),
        ({"reduction": 0}, "reduction must be between 1"),
        ({"reduction": 16}, "in_channels=8"),
    ],
)
def test_a_bad_option_raises_and_leaves_the_network_alone(options, message):
    net = segresnet()
    with pytest.raises(ValueError, match=message):
        recalibrate(net, **options)
    assert blocks(net) == {}
    recalibrate(net)


def test_one_class_has_no_hidden_channel_behind_the_classifier_and_spatial_excitation_works():
    with pytest.raises(ValueError, match=r"in_channels=1.*spatial excitation \(se='sse'\)"):
        recalibrate(unet(out_channels=1), positions="P4")
    assert recalibrate(unet(out_channels=1), "sse", "P4")(image()).shape == (1, 1, 32, 32)


def test_further_options_are_keyword_only():
    with pytest.raises(TypeError):
        recalibrate(segresnet(), "scse", "P5", 2)
