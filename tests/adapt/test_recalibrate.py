# SPDX-License-Identifier: Apache-2.0
import copy
import pickle

import pytest
import torch
from monai.networks import nets
from torch import nn

from monai_attn.adapt import Places, places_of, recalibrate
from monai_attn.adapt.recalibrate import ZeroInitResidual
from monai_attn.blocks import ChannelGate, ChannelSE, ChannelSpatialSE, SpatialSE

from .test_features import OWN, Own

CHANNELS, STRIDES = (8, 16, 32, 64), (2, 2, 2)


def unet(out_channels: int = 3) -> nets.UNet:
    return nets.UNet(2, 1, out_channels, CHANNELS, STRIDES, num_res_units=1)


def segresnet(**kwargs) -> nets.SegResNet:
    return nets.SegResNet(2, 8, 1, 3, blocks_down=(1, 1, 1, 1), **kwargs)


def dynunet(**kwargs) -> nets.DynUNet:
    return nets.DynUNet(2, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=CHANNELS, **kwargs)


def image(batch: int = 1, side: int = 32) -> torch.Tensor:
    return torch.rand(batch, 1, side, side)


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    return {path: module for path, module in network.named_modules() if path.endswith(".recalibration")}


@pytest.mark.parametrize(
    ("positions", "paths", "channels"),
    [
        ("P1", ["down_layers.0", "down_layers.1", "down_layers.2"], [8, 16, 32]),
        ("P2", ["up_layers.0", "up_layers.1", "up_layers.2"], [32, 16, 8]),
        ("P3", ["down_layers.3"], [64]),
        ("P4", ["conv_final"], [3]),
        ("P5", [f"{part}_layers.{i}" for part in ("down", "up") for i in range(3)], [8, 16, 32, 32, 16, 8]),
        ("P6", [*(f"down_layers.{i}" for i in range(4)), *(f"up_layers.{i}" for i in range(3)), "conv_final"], None),
    ],
)
def test_a_position_has_its_blocks_of_the_channels_there(positions, paths, channels):
    found = blocks(recalibrate(segresnet(), positions=positions))
    assert list(found) == [f"{path}.recalibration" for path in paths]
    assert [block.out_channels for block in found.values()] == (channels or [8, 16, 32, 64, 32, 16, 8, 3])


@pytest.mark.parametrize(("se", "kind"), [("scse", ChannelSpatialSE), ("cse", ChannelSE), ("sse", SpatialSE)])
def test_se_chooses_the_block_and_reduction_and_aggregation_reach_it(se, kind):
    found = blocks(recalibrate(segresnet(), se, "P1", reduction=4, aggregation="add"))
    assert {type(block) for block in found.values()} == {kind}
    layers = [module for block in found.values() for module in block.modules() if isinstance(module, ChannelGate)]
    assert [layer.fc1.out_features for layer in layers] == ([] if se == "sse" else [2, 4, 8])
    (first, *_), x = found.values(), torch.rand(1, 8, 6, 6)
    if se == "scse":
        torch.testing.assert_close(first(x), x * first.channel(x) + x * first.spatial(x))


@pytest.mark.parametrize("build", [unet, lambda: nets.BasicUNet(2, 1, 3, (8, 8, 16, 16, 32, 8)), segresnet, dynunet])
def test_the_output_is_that_of_the_network_with_the_blocks_applied_to_its_features(build):
    net, x = build().eval(), image()
    plain = copy.deepcopy(net)
    recalibrate(net, positions="P6")
    for path, block in blocks(net).items():
        plain.get_submodule(path.rpartition(".")[0]).register_forward_hook(lambda *args, block=block: block(args[2]))
    torch.testing.assert_close(net(x), plain(x), atol=0, rtol=0)


def test_with_deep_supervision_every_output_of_training_is_there_and_p4_is_behind_the_finest():
    net = recalibrate(nets.SegResNetDS(2, 8, 1, 3, blocks_down=(1, 1, 1, 1), dsdepth=3), positions="P6").train()
    assert [output.shape[2] for output in net(image(2))] == [32, 16, 8]
    assert "up_layers.2.head.recalibration" in blocks(net)
    assert recalibrate(dynunet(deep_supervision=True), positions="P6").train()(image(2)).shape == (2, 2, 3, 32, 32)


def test_the_stacks_of_an_efficientnet_hold_its_own_blocks_only():
    net = recalibrate(nets.FlexibleUNet(1, 3, "efficientnet-b0")).eval()
    net.encoder.set_swish(memory_efficient=False)
    assert net(image()).shape == (1, 3, 32, 32)


def test_the_same_network_comes_back_with_its_old_parameters_takes_a_plain_state_and_can_be_saved_whole():
    net, x = dynunet().eval(), image()
    before, parameters = copy.deepcopy(net.state_dict()), dict(net.named_parameters())
    assert recalibrate(net, positions="P6") is net
    assert all(net.get_parameter(key) is value for key, value in parameters.items())
    result = net.load_state_dict(before, strict=False)
    assert result.unexpected_keys == []
    assert all(".recalibration." in key for key in result.missing_keys)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))


def test_new_blocks_have_the_networks_device_type_and_mode():
    net = unet().double().train()
    net.get_submodule("model.0").eval()
    recalibrate(net, positions="P1", zero_effect=True)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float64}
    assert [block.training for block in blocks(net).values()] == [False, True, True]
    with torch.device("meta"):
        assert recalibrate(unet()).get_submodule("model.0").recalibration.channel.fc1.weight.is_meta


@pytest.mark.parametrize(
    ("se", "aggregation", "dtype"),
    [
        ("scse", "max", torch.float32),
        ("scse", "mul", torch.float64),
        ("cse", "max", torch.bfloat16),
        ("sse", "max", torch.float32),
    ],
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
    net = unet().train()
    twin, x = recalibrate(copy.deepcopy(net), positions="P6", zero_effect=True), image(2)
    outputs = [network(x) for network in (net, twin)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(twin.get_parameter(key).grad, parameter.grad, rtol=1e-3, atol=1e-3)


def test_a_residual_goes_from_the_identity_to_its_block_and_learns_its_strength_first():
    residual, x = ZeroInitResidual(ChannelSpatialSE(2, 4)), torch.rand(2, 4, 5, 6)
    nn.init.ones_(residual.block.channel.fc1.bias)
    assert torch.equal(residual(x), x)
    residual(x).square().sum().backward()
    assert residual.strength.grad != 0
    assert not any(parameter.grad.any() for parameter in residual.block.parameters())
    for strength in (0.25, 1.0):
        nn.init.constant_(residual.strength, strength)
        torch.testing.assert_close(residual(x), (1 - strength) * x + strength * residual.block(x))
    residual(x).square().sum().backward()
    assert all(parameter.grad.any() for parameter in residual.parameters())


def test_a_network_of_ones_own_is_recalibrated_by_its_places_and_scripts_and_exports():
    net, x = recalibrate(Own().eval(), positions="P6", places=OWN), torch.rand(1, 2, 8, 6)
    assert [block.out_channels for block in blocks(net).values()] == [4, 8, 4, 3]
    for compiled in (torch.jit.script(net), torch.export.export(net, (x,)).module()):
        torch.testing.assert_close(compiled(x), net(x))
    only = Places(["fine"], [], None, None, divisor=2, size=(8, 8))
    (block,) = blocks(recalibrate(Own(), positions="P1", places=only, zero_effect=True)).values()
    assert isinstance(block, ZeroInitResidual)


def test_a_wrong_path_raises_whatever_the_position_and_leaves_the_network_alone():
    net = Own()
    with pytest.raises(ValueError, match=r"Own does not run its module \['spare'\]"):
        recalibrate(net, positions="P1", places=OWN._replace(classifier="spare"))
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
        recalibrate(net, places=OWN._replace(encoders=["fine"]))
    assert blocks(net) == {}
    assert "fine.0.recalibration" in blocks(recalibrate(net, places=OWN._replace(encoders=["fine.0"])))


class OwnUNet(nets.UNet):
    pass


def test_a_subclass_and_an_unknown_encoder_are_not_taken_for_known_ones_and_the_error_says_what_to_give():
    for network in (OwnUNet(2, 1, 3, CHANNELS, STRIDES), nets.SegResNetVAE((16, 16), spatial_dims=2)):
        with pytest.raises(TypeError, match=rf"of {type(network).__name__} are not known, only .*BasicUNet.*Places\("):
            recalibrate(network)
    net = nets.FlexibleUNet(1, 3, "resnet10")
    net.encoder = Own()
    with pytest.raises(
        TypeError, match="FlexibleUNet with Own are not known, only those of EfficientNetEncoder, ResNet"
    ):
        recalibrate(net)


def test_the_shallowest_networks_have_places_too():
    ds = nets.SegResNetDS(2, 8, 1, 3, blocks_down=(1,))
    assert places_of(ds) == Places([], [], "encoder.layers.0.blocks", "up_layers.0.head", [1, 1])
    attention = places_of(nets.AttentionUnet(2, 1, 3, (4, 8), (2,)))
    assert attention == Places(["model.0"], ["model.1.merge"], "model.1.submodule", "model.2", (2, 2))


def test_a_position_that_has_no_module_raises_and_is_named():
    with pytest.raises(ValueError, match=r"classifier of SegResNet.*for P1, P2, P3, P5"):
        recalibrate(segresnet(use_conv_final=False), positions="P4")
    with pytest.raises(ValueError, match="needs the encoders and the decoders"):
        recalibrate(nets.SegResNetDS(2, 8, 1, 3, blocks_down=(1,)), positions="P5")
    with pytest.raises(ValueError, match=r"in_channels=1.*spatial excitation \(se='sse'\)"):
        recalibrate(unet(out_channels=1), positions="P4")
    assert recalibrate(unet(out_channels=1), "sse", "P4")(image()).shape == (1, 1, 32, 32)


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
def test_a_bad_option_raises_and_leaves_the_network_alone_and_so_does_a_second_call(options, message):
    net = segresnet()
    with pytest.raises(ValueError, match=message):
        recalibrate(net, **options)
    assert blocks(net) == {}
    recalibrate(net)
    with pytest.raises(ValueError, match=r"SegResNet has been recalibrated already; name all positions in one call"):
        recalibrate(net, positions="P3")
    assert len(blocks(net)) == 6
