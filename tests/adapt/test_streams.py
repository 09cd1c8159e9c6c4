# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from monai.networks.nets import (
    UNETR,
    AttentionUnet,
    BasicUNet,
    BasicUNetPlusPlus,
    DynUNet,
    FlexibleUNet,
    SegResNet,
    SegResNetDS,
    SegResNetVAE,
    SwinUNETR,
    UNet,
    VNet,
)
from torch import nn

from monai_attn.adapt import NamedStream, Stream, stream_of
from monai_attn.adapt.streams.base import total_stride
from monai_attn.nets import SCSEUNet

CHANNELS, STRIDES = (8, 16, 32, 64), (2, 2, 2)


def dynunet(dims: int, **kwargs) -> DynUNet:
    kernels = {"kernel_size": [3] * 4, "strides": [1, 2, 2, 2], "upsample_kernel_size": [2] * 3, **kwargs}
    return DynUNet(dims, 1, 3, filters=CHANNELS, **kernels)


def unetr(dims: int) -> UNETR:
    pytest.importorskip("einops")
    transformer = {"feature_size": 8, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2}
    return UNETR(1, 3, 32 if dims == 2 else 16, spatial_dims=dims, norm_name="batch", **transformer)


def swin_unetr(dims: int) -> SwinUNETR:
    pytest.importorskip("einops")
    return SwinUNETR(1, 3, feature_size=12, depths=(1,) * 4, num_heads=(1,) * 4, spatial_dims=dims, norm_name="batch")


def levels(prefix: str, count: int, suffix: str = "") -> list[str]:
    return [f"{prefix}{index}{suffix}" for index in range(count)]


def known(net, size, divisor, encoder, decoder, paths=None) -> SimpleNamespace:
    """A network of MONAI with dropout, an image's side, and the features (channels, divided by) it must show."""
    return SimpleNamespace(net=net, size=size, divisor=divisor, encoder=encoder, decoder=decoder, paths=paths)


FULL = [(8, 1), (16, 2), (32, 4), (64, 8)]
NETS = {
    "UNet": known(
        lambda dims: UNet(dims, 1, 3, CHANNELS, STRIDES, num_res_units=2, dropout=0.2),
        16,
        8,
        [(8, 2), (16, 4), (32, 8)],
        [(16, 4), (8, 2)],
        (
            ["model.0", "model.1.submodule.0", "model.1.submodule.1.submodule.0"],
            ["model.1.submodule.1.submodule.2", "model.1.submodule.2"],
        ),
    ),
    "BasicUNet": known(
        lambda dims: BasicUNet(dims, 1, 3, (8, 8, 16, 32, 64, 12), dropout=0.2),
        32,
        16,
        [(8, 1), (8, 2), (16, 4), (32, 8), (64, 16)],
        [(32, 8), (16, 4), (8, 2), (12, 1)],
        (["conv_0", "down_1", "down_2", "down_3", "down_4"], ["upcat_4", "upcat_3", "upcat_2", "upcat_1"]),
    ),
    "VNet": known(
        lambda dims: VNet(dims, 1, 3),
        16,
        16,
        [(16, 1), (32, 2), (64, 4), (128, 8), (256, 16)],
        [(256, 8), (128, 4), (64, 2), (32, 1)],
        (
            ["in_tr", "down_tr32", "down_tr64", "down_tr128", "down_tr256"],
            ["up_tr256", "up_tr128", "up_tr64", "up_tr32"],
        ),
    ),
    "SegResNet": known(
        lambda dims: SegResNet(dims, 8, 1, 3, dropout_prob=0.2),
        16,
        8,
        FULL,
        FULL[2::-1],
        (levels("down_layers.", 4), levels("up_layers.", 3)),
    ),
    "SegResNetDS": known(
        lambda dims: SegResNetDS(dims, 8, 1, 3),
        16,
        8,
        FULL,
        FULL[2::-1],
        (levels("encoder.layers.", 4, ".blocks"), levels("up_layers.", 3, ".blocks")),
    ),
    "DynUNet": known(
        lambda dims: dynunet(dims, dropout=0.2),
        16,
        8,
        FULL,
        FULL[2::-1],
        (["input_block", "downsamples.0", "downsamples.1", "bottleneck"], levels("upsamples.", 3)),
    ),
    "AttentionUnet": known(
        lambda dims: AttentionUnet(dims, 1, 3, CHANNELS, STRIDES, dropout=0.2),
        16,
        8,
        FULL,
        FULL[2::-1],
        (
            [
                "model.0",
                "model.1.submodule.0",
                "model.1.submodule.1.submodule.0",
                "model.1.submodule.1.submodule.1.submodule",
            ],
            ["model.1.submodule.1.submodule.1.merge", "model.1.submodule.1.merge", "model.1.merge"],
        ),
    ),
    "FlexibleUNet": known(
        lambda dims: FlexibleUNet(
            1, 3, "resnet10", spatial_dims=dims, decoder_channels=(32, 16, 16, 8, 8), dropout=0.2
        ),
        32,
        32,
        [(64, 2), (64, 4), (128, 8), (256, 16), (512, 32)],
        [(32, 16), (16, 8), (16, 4), (8, 2), (8, 1)],
    ),
    "UNETR": known(
        unetr,
        {2: 32, 3: 16},
        {2: 32, 3: 16},
        [*FULL, (24, 16)],
        [(64, 8), (32, 4), (16, 2), (8, 1)],
    ),
    "SwinUNETR": known(
        swin_unetr,
        32,
        32,
        [(12, 1), (12, 2), (24, 4), (48, 8), (96, 16), (192, 32)],
        [(96, 16), (48, 8), (24, 4), (12, 2), (12, 1)],
    ),
}
NAMED = [name for name, case in NETS.items() if case.paths]


def of(value: int | dict[int, int], dims: int) -> int:
    return value[dims] if isinstance(value, dict) else value


def image(name: str, dims: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, *[of(NETS[name].size, dims)] * dims)


# --- equal to the network ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETS)
def test_a_stream_shows_the_features_of_the_table_and_the_very_logits_of_the_network(name, dims):
    case = NETS[name]
    net = case.net(dims).eval()
    stream, x = stream_of(net).eval(), image(name, dims)
    with torch.no_grad():
        encoder, decoder, logits = stream(x)
        assert torch.equal(logits, net(x))
    size = of(case.size, dims)
    for features, expected in ((encoder, case.encoder), (decoder, case.decoder)):
        assert [tuple(f.shape[1:]) for f in features] == [(c, *[size // by] * dims) for c, by in expected]
    assert stream.encoder_channels == tuple(channels for channels, _ in case.encoder)
    assert stream.decoder_channels == tuple(channels for channels, _ in case.decoder)
    assert (stream.out_channels, stream.spatial_dims) == (3, dims)
    assert stream.divisor == (of(case.divisor, dims),) * dims


@pytest.mark.parametrize("name", NETS)
def test_in_training_the_logits_are_the_networks_too_with_the_same_dropout(name):
    net = NETS[name].net(2).train()
    stream, x = stream_of(net).train(), image(name, 2, batch=2)
    outputs = []
    for run in (net, lambda x: stream(x)[2]):
        torch.manual_seed(1)
        outputs.append(run(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("name", NAMED)
def test_the_features_are_the_outputs_of_the_modules_that_the_table_names_and_nothing_changes_them(name):
    net = NETS[name].net(2).eval()
    paths = NETS[name].paths
    outputs: dict[str, torch.Tensor] = {}
    explicit, named = stream_of(net), NamedStream(net, *paths, divisor=NETS[name].divisor)
    for path in (*paths[0], *paths[1]):
        net.get_submodule(path).register_forward_hook(lambda *args, path=path: outputs.update({path: args[2].clone()}))
    for stream in (explicit, named):
        for features, part in zip(stream(image(name, 2))[:2], paths, strict=True):
            for feature, path in zip(features, part, strict=True):
                assert torch.equal(feature, outputs[path]), path
    assert named.encoder_channels == explicit.encoder_channels


@pytest.mark.parametrize(
    ("net", "divisor"),
    [
        (lambda: UNet(2, 1, 3, CHANNELS, ((1, 2), 2, 2, 5)), (4, 8)),  # the fourth stride is not used
        (lambda: UNet(3, 1, 3, (4, 8), (2,)), (2, 2, 2)),
        (lambda: AttentionUnet(2, 1, 3, (8, 16), (2,)), (2, 2)),
        (lambda: dynunet(3, strides=[1, (1, 2, 2), 2, 2], upsample_kernel_size=[(1, 2, 2), 2, 2]), (4, 8, 8)),
        (lambda: dynunet(2, strides=[(2, 1), 2, 2, 2]), (16, 8)),
        (lambda: dynunet(2, deep_supervision=True), (8, 8)),
        (lambda: SegResNet(2, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)), (4, 4)),
        (lambda: SegResNet(2, 8, 1, 8, use_conv_final=False), (8, 8)),
        (lambda: SegResNetDS(3, 8, 1, 3, resolution=(1, 1, 5)), (8, 8, 2)),
        (lambda: SegResNetDS(2, 8, 1, 3, dsdepth=3), (8, 8)),
        (lambda: SegResNetDS(2, 8, 1, 3, preprocess=nn.Softmax(-1)), (8, 8)),
        (lambda: FlexibleUNet(3, 2, "efficientnet-b0"), (32, 32)),
    ],
)
def test_anisotropic_short_and_deeply_supervised_variants_give_the_networks_logits(net, divisor):
    net = net().eval()
    stream = stream_of(net)
    assert stream.divisor == divisor
    channels = next(module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Conv3d))).in_channels
    x = torch.rand(1, channels, *[2 * side for side in divisor])
    with torch.no_grad():
        assert torch.equal(stream(x)[2], net(x))


def test_basic_unet_takes_sides_that_its_divisor_does_not_divide():
    net = BasicUNet(2, 1, 3, (8, 8, 16, 32, 64, 8)).eval()
    x = torch.rand(1, 1, 37, 50)
    assert torch.equal(stream_of(net)(x)[2], net(x))


# --- saved once, under net ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETS)
def test_the_state_is_the_networks_with_net_before_every_key(name):
    net = NETS[name].net(2)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    stream = stream_of(net)
    state = stream.state_dict()
    assert list(state) == [f"net.{key}" for key in before]
    assert all(torch.equal(state[f"net.{key}"], value) for key, value in before.items())
    assert [path for path, _ in stream.named_parameters()] == [f"net.{path}" for path, _ in net.named_parameters()]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", ["UNet", "AttentionUnet", "SegResNet"])
def test_a_state_loads_strictly_into_another_stream_and_into_the_plain_network(name, assign):
    trained, fresh, plain = (NETS[name].net(2).eval() for _ in range(3))
    source, target = stream_of(trained), stream_of(fresh)
    buffer = io.BytesIO()
    torch.save(source.state_dict(), buffer)
    buffer.seek(0)
    target.load_state_dict(torch.load(buffer, weights_only=True), assign=assign)
    plain.load_state_dict({key.removeprefix("net."): value for key, value in source.state_dict().items()})
    x = image(name, 2)
    assert torch.equal(target(x)[2], trained(x))
    assert torch.equal(fresh(x), trained(x))
    assert torch.equal(plain(x), trained(x))
    parameters = {id(parameter) for parameter in target.net.parameters()}
    assert {id(parameter) for parameter in target.flat.parameters()} <= parameters


@pytest.mark.parametrize("name", ["UNet", "AttentionUnet"])
def test_a_missing_and_a_superfluous_key_are_named_once(name):
    stream = stream_of(NETS[name].net(2))
    state = stream.state_dict()
    gone = next(iter(state))
    state["net.more"] = state.pop(gone)
    result = stream.load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([gone], ["net.more"])


@pytest.mark.parametrize("name", NETS)
def test_a_copy_gives_the_same_and_shares_nothing(name):
    stream, x = stream_of(NETS[name].net(2).eval()), image(name, 2)
    twin = copy.deepcopy(stream)
    expected = stream(x)[2]
    assert torch.equal(twin(x)[2], expected)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(stream(x)[2], expected)
    assert not torch.equal(twin(x)[2], expected)


# --- the dry run -------------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """A small network with batch norm that remembers how it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.norm, self.down = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 2, 2)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 3, 1)
        self.calls: list[tuple] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append((tuple(x.shape), x.dtype, self.training, self.norm.training, torch.is_grad_enabled()))
        fine = self.norm(self.fine(x))
        return self.head(self.up(self.down(fine)) + fine)


def test_channels_come_from_one_run_in_evaluation_on_the_smallest_image_of_the_networks_type():
    net = Recorder().double()
    stream = NamedStream(net, ["norm", "down"], ["up"], divisor=(2, 4))
    assert net.calls == [((1, 2, 4, 4), torch.float64, False, False, False)]
    assert (stream.encoder_channels, stream.decoder_channels, stream.out_channels) == ((4, 8), (4,), 3)
    net.calls.clear()
    NamedStream(net, ["norm", "down"], ["up"], divisor=2, size=(6, 8))
    assert net.calls[0][0] == (1, 2, 6, 8)


def test_the_dry_run_leaves_modes_statistics_and_random_numbers_as_they_were():
    net = Recorder().train()
    net.norm.eval()
    running, random = net.norm.running_mean.clone(), torch.get_rng_state()
    NamedStream(net, ["norm", "down"], ["up"], divisor=2)
    assert (net.training, net.norm.training, net.head.training) == (True, False, True)
    assert torch.equal(net.norm.running_mean, running)
    assert net.norm.num_batches_tracked == 0
    assert torch.equal(torch.get_rng_state(), random)


def test_the_modes_are_restored_when_the_network_fails():
    net = Recorder().train()
    with pytest.raises(RuntimeError):
        NamedStream(net, ["norm", "down"], ["up"], divisor=2, size=(3, 3))
    assert net.training
    assert not net.down._forward_hooks


def test_a_network_without_memory_shows_its_channels_too():
    with torch.device("meta"):
        assert stream_of(VNet()).encoder_channels == (16, 32, 64, 128, 256)


def test_total_stride_is_the_product_for_each_dimension():
    assert total_stride([2, (1, 2), (3, 1)], 2) == (6, 4)
    assert total_stride([], 0) == ()


# --- other networks ----------------------------------------------------------------------------------------------


def test_a_named_stream_makes_any_network_a_main_stream():
    net = SCSEUNet(2, 1, 3, features=4, depth=2).eval()
    stream = NamedStream(
        net, ["encoder_se.0", "encoder_se.1", "bottleneck_se"], ["decoder_se.0", "decoder_se.1"], divisor=4
    )
    x = torch.rand(1, 1, 13, 22)
    encoder, decoder, logits = stream(x)
    assert torch.equal(logits, net(x))
    assert [tuple(f.shape[2:]) for f in encoder] == [(13, 22), (7, 11), (4, 6)]
    assert [tuple(f.shape[2:]) for f in decoder] == [(7, 11), (13, 22)]


def test_a_named_stream_listens_only_while_it_runs_can_be_copied_traced_and_exported():
    stream = NamedStream(Recorder().eval(), ["norm", "down"], ["up"], divisor=2)
    x = torch.rand(1, 2, 8, 8)
    expected = stream(x)[2]
    assert not any(module._forward_hooks for module in stream.modules())
    logits = Logits(stream)
    for runs in (copy.deepcopy(logits), torch.jit.trace(logits, x), torch.export.export(logits, (x,)).module()):
        assert torch.equal(runs(x), expected)


class Logits(nn.Module):
    def __init__(self, stream: nn.Module) -> None:
        super().__init__()
        self.stream = stream

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stream(x)[2]


class RecorderStream(Stream):
    def __init__(self, net: nn.Module) -> None:
        super().__init__(net, divisor=2)

    def forward(self, x: torch.Tensor):
        fine = self.net.norm(self.net.fine(x))
        coarse = self.net.down(fine)
        up = self.net.up(coarse)
        return [fine, coarse], [up], self.net.head(up + fine)


def test_a_stream_of_ones_own_is_taken_as_it_is():
    net = Recorder().eval()
    stream = RecorderStream(net)
    assert stream_of(stream) is stream
    assert stream.encoder_channels == (4, 8)
    x = torch.rand(1, 2, 8, 8)
    assert torch.equal(stream(x)[2], net(x))


# --- bad arguments -----------------------------------------------------------------------------------------------


class OwnUNet(UNet):
    pass


@pytest.mark.parametrize(
    "network",
    [
        Recorder,
        lambda: OwnUNet(2, 1, 3, CHANNELS, STRIDES),
        lambda: SegResNetVAE((16, 16), spatial_dims=2),
        nn.Identity,
    ],
)
def test_an_unknown_class_and_a_subclass_of_a_known_one_raise_and_say_what_to_give(network):
    network = network()
    with pytest.raises(TypeError, match=rf"{type(network).__name__}, only for .*BasicUNet.*NamedStream\(.*Stream"):
        stream_of(network)


def test_a_path_that_the_network_has_not_raises_and_names_what_it_has():
    with pytest.raises(ValueError, match=r"Recorder has no module \['bottom', 'top'\].*'down'"):
        NamedStream(Recorder(), ["norm", "bottom"], ["top"], divisor=2)


def test_a_module_that_does_not_run_raises_and_is_named():
    net = Recorder()
    net.spare = nn.Identity()
    with pytest.raises(ValueError, match=r"does not run its module \['spare'\]"):
        NamedStream(net, ["norm", "spare"], ["up"], divisor=2)


def test_an_output_that_is_no_tensor_raises_and_its_giver_is_named():
    net = BasicUNetPlusPlus(2, 1, 3, features=(4, 4, 4, 4, 4, 4))
    with pytest.raises(TypeError, match="BasicUNetPlusPlus must give one tensor, got list"):
        NamedStream(net, ["conv_0_0", "conv_1_0"], ["upcat_0_4"], divisor=16)
    with pytest.raises(TypeError, match="module 'encoder' of SegResNetDS must give one tensor, got list"):
        NamedStream(SegResNetDS(2, 8), ["encoder"], [], divisor=8)


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (
            ["down", "norm"],
            ["up"],
            r"encoder features of Recorder must go from fine to coarse, got the sizes \[\(2, 1\), \(4, 2\)\]",
        ),
        (["norm", "down"], ["up", "down"], "decoder features of Recorder must go from coarse to fine"),
    ],
)
def test_features_in_another_order_raise(encoder, decoder, message):
    with pytest.raises(ValueError, match=message):
        NamedStream(Recorder(), encoder, decoder, divisor=2)


def test_a_network_without_convolution_raises():
    with pytest.raises(ValueError, match="Linear has no convolution"):
        NamedStream(nn.Linear(3, 3), [""], [], divisor=1)


def test_the_table_names_every_stream_that_there_is():
    assert {type(stream_of(NETS[name].net(2))) for name in NETS} == set(_subclasses(Stream))


def _subclasses(cls: type) -> list[type]:
    return [c for c in cls.__subclasses__() if c.__module__.startswith("monai_attn.adapt") and c is not NamedStream]
