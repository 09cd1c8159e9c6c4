# SPDX-License-Identifier: Apache-2.0
"""Every network of MONAI × every way to put attention into it: what docs/adapt.md says works, and what is refused."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from monai.networks import nets
from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer
from torch import nn

from monai_attn.adapt import FeatureExtractor, autofocus, features_of, places_of, recalibrate
from monai_attn.adapt.autofocus import ZeroInitGate
from monai_attn.adapt.places import _PLACES
from monai_attn.blocks import ChannelGate
from monai_attn.nets import EGCNN, SCSEFCDenseNet
from monai_attn.visualize import capture_attention

from ..conftest import count

PAGE = Path(__file__).parents[2] / "docs" / "adapt.md"
CLASSES, WIDE = 8, (16, 32, 64, 128, 256)
TRANSFORMER = {"feature_size": 8, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2, "norm_name": "batch"}
SWIN = {"feature_size": 12, "depths": (1,) * 4, "num_heads": (1,) * 4, "norm_name": "batch"}
TINY: dict[str, Callable[[int], nn.Module]] = {
    "UNet": lambda dims: nets.UNet(dims, 1, CLASSES, (8, 16, 32, 64), (2, 2, 2), num_res_units=2),
    "BasicUNet": lambda dims: nets.BasicUNet(dims, 1, CLASSES, (8, 8, 16, 16, 32, 8)),
    "AttentionUnet": lambda dims: nets.AttentionUnet(dims, 1, CLASSES, (8, 16, 32), (2, 2)),
    "VNet": lambda dims: nets.VNet(dims, 1, CLASSES, dropout_prob_down=0.0, dropout_prob_up=(0.0, 0.0)),
    "SegResNet": lambda dims: nets.SegResNet(dims, 8, 1, CLASSES, blocks_down=(1, 1, 1, 1)),
    "SegResNetDS": lambda dims: nets.SegResNetDS(dims, 8, 1, CLASSES, blocks_down=(1, 1, 1, 1)),
    "DynUNet": lambda dims: nets.DynUNet(dims, 1, CLASSES, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=(8, 16, 32, 64)),
    "FlexibleUNet": lambda dims: nets.FlexibleUNet(
        1, CLASSES, "resnet10", False, (32, 16, 16, 8, 8), spatial_dims=dims
    ),
    "UNETR": lambda dims: nets.UNETR(1, CLASSES, 16, spatial_dims=dims, **TRANSFORMER),
    "SwinUNETR": lambda dims: nets.SwinUNETR(1, CLASSES, spatial_dims=dims, **SWIN),
    "MedNeXt": lambda dims: nets.MedNeXt(dims, 4, 1, CLASSES, kernel_size=3, blocks_down=(1, 1), blocks_up=(1, 1)),
}
USUAL: dict[str, Callable[[], nn.Module]] = {
    "UNet": lambda: nets.UNet(3, 1, 2, WIDE, (2,) * 4, num_res_units=2),
    "BasicUNet": lambda: nets.BasicUNet(3, 1, 2),
    "AttentionUnet": lambda: nets.AttentionUnet(3, 1, 2, WIDE, (2,) * 4),
    "VNet": lambda: nets.VNet(3, 1, 2),
    "SegResNet": lambda: nets.SegResNet(3, 16, 1, 2),
    "SegResNetDS": lambda: nets.SegResNetDS(3, 32, 1, 2),
    "DynUNet": lambda: nets.DynUNet(3, 1, 2, [3] * 5, [1, 2, 2, 2, 2], [2] * 4),
    "FlexibleUNet": lambda: nets.FlexibleUNet(1, 2, "resnet18", spatial_dims=3),
    "UNETR": lambda: nets.UNETR(1, 2, 96, norm_name="batch"),
    "SwinUNETR": lambda: nets.SwinUNETR(1, 2, feature_size=48),
    "MedNeXt": lambda: nets.MedNeXt(3, 32, 1, 2),
}


class Case(NamedTuple):
    """What a tiny network has; a feature is written as its channels / by what the image's side is divided."""

    side: int  # of an image
    encoders: str
    bottleneck: str
    decoders: str
    focus: list[int]  # input channels of the last two convolutions that autofocus may replace
    coarsest: str | None = None  # of the encoder features those behind the encoders, if not the bottleneck

    def features(self, *parts: str) -> list[tuple[int, int]]:
        texts = [feature.split("/") for part in parts for feature in getattr(self, part).split()]
        return [(int(channels), int(by)) for channels, by in texts]


NETS = {
    "UNet": Case(16, "8/2 16/4 32/8", "64/8", "16/4 8/2", [8, 8], ""),
    "BasicUNet": Case(32, "8/1 8/2 16/4 16/8", "32/16", "16/8 16/4 8/2 8/1", [16, 8]),
    "AttentionUnet": Case(16, "8/1 16/2", "32/4", "16/2 8/1", [32, 16]),
    "VNet": Case(16, "16/1 32/2 64/4 128/8", "256/16", "256/8 128/4 64/2 32/1", []),
    "SegResNet": Case(16, "8/1 16/2 32/4", "64/8", "32/4 16/2 8/1", [8, 8]),
    "SegResNetDS": Case(16, "8/1 16/2 32/4", "64/8", "32/4 16/2 8/1", [8, 8]),
    "DynUNet": Case(16, "8/1 16/2 32/4", "64/8", "32/4 16/2 8/1", [16, 8]),
    "FlexibleUNet": Case(32, "64/2 64/4 128/8 256/16", "512/32", "32/16 16/8 16/4 8/2 8/1", [8, 8]),
    "UNETR": Case(16, "8/1 16/2 32/4 64/8", "", "64/8 32/4 16/2 8/1", [16, 8], "24/16"),
    "SwinUNETR": Case(32, "12/1 12/2 24/4 48/8", "192/32", "96/16 48/8 24/4 12/2 12/1", [24, 12], "96/16 192/32"),
    "MedNeXt": Case(16, "4/1 8/2", "16/4", "8/2 4/1", []),
}
SCRIPTED = ("UNet", "BasicUNet", "VNet", "SegResNet", "DynUNet")  # with an edge stream too
CANNOT_SCRIPT = {
    "SwinUNETR": "MONAI's own code has keyword-only arguments",
    "MedNeXt": "MONAI's own code calls super().forward",
}
CANNOT_COMPILE = {
    "BasicUNet": "MONAI's UpCat asks torch.jit.isinstance",
    "FlexibleUNet": "MONAI's UpCat asks torch.jit.isinstance",
    "SwinUNETR": "MONAI checks the size with numpy",
}
NO_FOCUS = {"VNet": "none: kernels are 5x5", "MedNeXt": "none: kernels are depthwise"}

pytestmark = pytest.mark.skipif(find_spec("einops") is None, reason="MONAI's transformers need einops")
every_network = pytest.mark.parametrize("name", NETS)
# compiling all, and in 3D, takes minutes
in_2d_and_3d = pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
SOME = ("UNet", "AttentionUnet", "SegResNet")


def networks(*usual: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=() if n in usual else pytest.mark.slow) for n in NETS]
    )


def image(name: str, dims: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, *[NETS[name].side] * dims)


def with_blocks(network: nn.Module, name: str) -> nn.Module:
    return recalibrate(network, positions="P6" if NETS[name].bottleneck else "P5", zero_effect=True)


def with_all(name: str, dims: int = 2, edges: bool = True) -> nn.Module:
    """A network with attention of every kind, and with some effect."""
    network = recalibrate(TINY[name](dims), "sse", "P6" if NETS[name].bottleneck else "P5")
    network = network if name in NO_FOCUS else autofocus(network, last=1, dilations=(1, 2))
    network = EGCNN(network) if edges else network
    for module in network.modules():
        if isinstance(module, ZeroInitGate):
            nn.init.constant_(module.strength, 0.7)
        if isinstance(module, EGCNN):
            nn.init.normal_(module.fusion.weight)
    return network.eval()


@every_network
def test_features_are_the_outputs_of_the_named_modules_and_have_the_channels_and_sizes_of_the_table(name):
    case, net, x = NETS[name], TINY[name](2).eval(), image(name)
    extractor, places, outputs = features_of(net), places_of(net), {}
    for path in (*places.encoders, *places.decoders, places.classifier):
        net.get_submodule(path).register_forward_hook(lambda *args, path=path: outputs.update({path: args[2].clone()}))
    encoder, decoder, logits = extractor(x)
    expected = (
        case.features("encoders", "bottleneck" if case.coarsest is None else "coarsest"),
        case.features("decoders"),
    )
    for features, table in zip((encoder, decoder), expected):
        assert [tuple(f.shape[1:]) for f in features] == [(c, *[case.side // by] * 2) for c, by in table]
    for path, feature in zip([*places.encoders, *places.decoders], [*encoder[: len(places.encoders)], *decoder]):
        assert torch.equal(feature, outputs[path]), path
    assert torch.equal(logits, outputs[places.classifier])
    assert torch.equal(logits, net(x))
    assert extractor.encoder_channels == tuple(channels for channels, _ in expected[0])
    assert extractor.decoder_channels == tuple(channels for channels, _ in expected[1])
    assert (extractor.out_channels, extractor.spatial_dims) == (CLASSES, 2)


@pytest.mark.parametrize("name", SCRIPTED)
def test_scriptable_and_listening_extractors_show_the_same(name):
    net, x = TINY[name](2).eval(), image(name)
    scriptable, listening = features_of(net), FeatureExtractor(net)
    assert type(scriptable) is not type(listening)
    for ours, theirs in zip(scriptable(x)[:2], listening(x)[:2]):
        assert all(map(torch.equal, ours, theirs))
    assert torch.equal(scriptable(x)[2], listening(x)[2])


def test_every_class_of_the_table_is_tested_here():
    assert {type(build(2)) for build in TINY.values()} == set(_PLACES)


def excitation(channels: int) -> int:
    """Parameters of a channel and a spatial excitation with r = 2, and of their strength."""
    hidden = channels // 2
    return 2 * channels * hidden + hidden + channels + channels + 1 + 1


def attention(channels: int, taps: int) -> int:
    """Parameters of the attention of an autofocus layer of 4 scales, and of its strength."""
    return taps * channels * (channels // 2) + channels // 2 + channels // 2 * 4 + 4 + 1


@in_2d_and_3d
@every_network
def test_methods_start_without_effect_add_the_parameters_of_the_closed_form_and_learn_after_one_step(name, dims):
    case, x, taps = NETS[name], image(name, dims, batch=2), 3**dims
    widths = [width for width, _ in case.features("encoders", "bottleneck", "decoders")]
    widths += [CLASSES] * bool(case.bottleneck)
    methods = {"recalibrate": (lambda net: with_blocks(net, name), sum(map(excitation, widths)))}
    methods["EGCNN"] = (EGCNN, None)  # tests/nets/test_egcnn.py has its closed form
    if name in NO_FOCUS:
        with pytest.raises(ValueError, match=f"{name} runs 0"):
            autofocus(TINY[name](dims), last=2)
    else:
        methods["autofocus"] = (lambda net: autofocus(net, last=2), sum(attention(c, taps) for c in case.focus))
    for method, (apply, parameters) in methods.items():
        plain = TINY[name](dims).eval()
        with torch.no_grad():
            expected, keys = plain(x), set(plain.state_dict())
        before, old = count(plain), {id(parameter) for parameter in plain.parameters()}
        network = apply(plain)
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(x), expected, rtol=0, atol=1e-5 if method == "autofocus" else 0)
        assert parameters is None or count(network) - before == parameters, method
        if method != "autofocus":  # whose kernels change their names, see test_autofocus.py
            assert keys <= {key.removeprefix("main_stream.net.") for key in network.state_dict()}
        new = {key: value for key, value in network.train().named_parameters() if id(value) not in old}
        for module in network.modules():
            if isinstance(module, ChannelGate):  # a small layer may start with all its units off
                nn.init.ones_(module.fc1.bias)
        optimizer = torch.optim.Adam(new.values(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            outputs = network.forward_all(x) if method == "EGCNN" else [network(x)]
            sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
            optimizer.step()
        assert [key for key, value in new.items() if value.grad is None or not value.grad.any()] == [], method


@every_network
def test_all_methods_together_show_their_gates_load_their_state_and_copy(name):
    case, network, x = NETS[name], with_all(name), image(name)
    with torch.no_grad(), capture_attention(network) as maps:
        expected = network(x)
        positions = len(case.features("encoders", "decoders")) + 2 * bool(case.bottleneck)
        gates = sum(by < case.features("decoders")[0][1] for _, by in case.features("encoders"))
        assert len(maps) == positions + (name not in NO_FOCUS) + gates
        other = with_all(name)
        other.load_state_dict(network.state_dict())
        assert torch.equal(other(x), expected)
        twin = copy.deepcopy(network)
        assert torch.equal(twin(x), expected)
        for parameter in twin.parameters():
            nn.init.zeros_(parameter)
        assert torch.equal(network(x), expected)
        assert not torch.equal(twin(x), expected)


def same(compiled: Callable, network: nn.Module, x: torch.Tensor, atol: float = 1e-5) -> None:
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), atol=atol, rtol=0)


@in_2d_and_3d
@networks(*SOME)
def test_trace_and_export_equal_eager(name, dims):
    network, x = with_all(name, dims), image(name, dims)
    same(torch.jit.trace(network, x, check_trace=False), network, x)
    same(torch.export.export(network, (x,)).module(), network, x)


@in_2d_and_3d
@networks("UNet", "SegResNet", "DynUNet")
def test_script_equals_eager_where_the_page_says_so(name, dims):
    network, x = with_all(name, dims, edges=name in SCRIPTED), image(name, dims)
    if name in CANNOT_SCRIPT:
        with pytest.raises((RuntimeError, torch.jit.frontend.NotSupportedError)):
            torch.jit.script(TINY[name](dims))
    else:
        same(torch.jit.script(network), network, x)
    if name not in SCRIPTED:
        with pytest.raises((RuntimeError, torch.jit.frontend.NotSupportedError)):
            torch.jit.script(EGCNN(TINY[name](dims)))


@pytest.mark.slow  # a minute
@every_network
def test_compile_equals_eager_without_graph_break_where_the_page_says_so(name):
    whole = name not in CANNOT_COMPILE
    for edges in (False, True):
        network, x = with_all(name, edges=edges), image(name)
        torch._dynamo.reset()
        fullgraph = whole and (not edges or name in SCRIPTED)
        same(torch.compile(network, backend="aot_eager", fullgraph=fullgraph), network, x)
    if not whole:
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(TINY[name](2).eval(), backend="aot_eager", fullgraph=True)(x)


@pytest.mark.slow  # minutes
@pytest.mark.parametrize("dims", [2, 3])
@every_network
def test_onnx_equals_eager(name, dims, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, x = with_all(name, dims), image(name, dims)
    torch.onnx.export(network, (x,), tmp_path / "network.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    same(lambda x: torch.from_numpy(output), network, x, atol=1e-3)


def row(name: str) -> str:
    """A row of docs/adapt.md, for volumes of one channel and two classes."""
    with torch.device("cpu" if name == "SwinUNETR" else "meta"):  # its constructor reads a tensor's values
        plain = USUAL[name]().to("meta")
    methods = [recalibrate, EGCNN] if name in NO_FOCUS else [recalibrate, EGCNN, lambda net: autofocus(net, last=2)]
    with torch.device("meta"):
        added = [f"+{count(apply(copy.deepcopy(plain))) - count(plain):,}" for apply in methods]
    scse, edges, focus = [*added, NO_FOCUS.get(name)][:3]
    positions = "P1 to P6" if places_of(plain).bottleneck else "not P3, P6"
    script = f"no: {CANNOT_SCRIPT[name]}" if name in CANNOT_SCRIPT else "yes, not with `EGCNN`"
    script = "yes" if name in SCRIPTED else script
    return f"| `{name}` | {count(plain):,} | {scse} | {positions} | {focus} | {edges} | {script} |"


@networks(*SCRIPTED)
def test_the_page_has_the_table_of_what_works_for_which_network(name):
    assert row(name) in PAGE.read_text()


@pytest.mark.parametrize("se_block", ["SSE", "CSSE"])
@pytest.mark.skipif(find_spec("squeeze_and_excitation") is not None, reason="the package that MONAI asks for is here")
def test_monais_quicknat_with_spatial_excitation_wants_another_package(se_block):
    with pytest.raises(ImportError, match="install squeeze_and_excitation locally"):
        nets.Quicknat(se_block=se_block)


def test_monais_quicknat_shares_one_channel_excitation_and_ours_has_one_for_each_block():
    calls: list[int] = []
    theirs, x = nets.Quicknat(num_classes=CLASSES, num_filters=8, se_block="CSE").eval(), torch.rand(1, 1, 32, 32)
    (shared,) = [module for module in theirs.modules() if isinstance(module, ChannelSELayer)]
    shared.register_forward_hook(lambda *_: calls.append(1))
    assert theirs(x).shape == (1, CLASSES, 32, 32)
    assert len(calls) == 18
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        theirs(torch.rand(1, 1, 36, 45))
    for se in ("cse", "sse", "scse"):
        ours = SCSEFCDenseNet(2, 1, CLASSES, features=8, bottleneck="dense", act="prelu", se=se).eval()
        with capture_attention(ours) as maps:
            assert ours(torch.rand(1, 1, 36, 45)).shape == (1, CLASSES, 36, 45)
        assert len(maps) == 8 * (2 if se == "scse" else 1)
    assert count(SCSEFCDenseNet(2, 1, 28, bottleneck="dense", act="prelu", se=None)) == 3_516_971
