# SPDX-License-Identifier: Apache-2.0
"""Every network of MONAI × every way to put attention into it: what docs/adapt.md says works, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from monai.inferers import sliding_window_inference
from monai.networks.blocks.squeeze_and_excitation import ChannelSELayer
from monai.networks.nets import (
    UNETR,
    AttentionUnet,
    BasicUNet,
    DynUNet,
    FlexibleUNet,
    MedNeXt,
    Quicknat,
    SegResNet,
    SegResNetDS,
    SwinUNETR,
    UNet,
    VNet,
)
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from monai_attn.adapt import autofocus, places_of, recalibrate, stream_of
from monai_attn.adapt.autofocus import ZeroInitGate
from monai_attn.adapt.recalibrate import ZeroInitResidual
from monai_attn.blocks import ChannelGate
from monai_attn.nets import EGCNN, SCSEFCDenseNet
from monai_attn.visualize import capture_attention

PAGE = Path(__file__).parents[2] / "docs" / "adapt.md"
CLASSES = 8


def unetr(dims: int) -> UNETR:
    pytest.importorskip("einops")
    transformer = {"feature_size": 8, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2}
    return UNETR(1, CLASSES, 16, spatial_dims=dims, norm_name="batch", **transformer)


def swin_unetr(dims: int) -> SwinUNETR:
    pytest.importorskip("einops")
    return SwinUNETR(
        1, CLASSES, feature_size=12, depths=(1,) * 4, num_heads=(1,) * 4, spatial_dims=dims, norm_name="batch"
    )


def known(build, side, encoders, decoders, bottleneck, focus, usual) -> SimpleNamespace:
    """A tiny network for a number of dimensions and an image's side; the channels of its encoders, decoders and
    bottleneck; the input channels of the last two convolutions that autofocus may replace; a network of usual size."""
    return SimpleNamespace(
        build=build,
        side=side,
        encoders=encoders,
        decoders=decoders,
        bottleneck=bottleneck,
        focus=focus,
        usual=usual,
    )


WIDE = (16, 32, 64, 128, 256)
NETS = {
    "UNet": known(
        lambda dims: UNet(dims, 1, CLASSES, (8, 16, 32, 64), (2, 2, 2), num_res_units=2),
        16,
        [8, 16, 32],
        [16, 8],
        64,
        [8, 8],
        lambda: UNet(3, 1, 2, WIDE, (2,) * 4, num_res_units=2),
    ),
    "BasicUNet": known(
        lambda dims: BasicUNet(dims, 1, CLASSES, (8, 8, 16, 16, 32, 8)),
        32,
        [8, 8, 16, 16],
        [16, 16, 8, 8],
        32,
        [16, 8],
        lambda: BasicUNet(3, 1, 2),
    ),
    "AttentionUnet": known(
        lambda dims: AttentionUnet(dims, 1, CLASSES, (8, 16, 32), (2, 2)),
        16,
        [8, 16],
        [16, 8],
        32,
        [32, 16],
        lambda: AttentionUnet(3, 1, 2, WIDE, (2,) * 4),
    ),
    "VNet": known(
        lambda dims: VNet(dims, 1, CLASSES),
        16,
        [16, 32, 64, 128],
        [256, 128, 64, 32],
        256,
        None,
        lambda: VNet(3, 1, 2),
    ),
    "SegResNet": known(
        lambda dims: SegResNet(dims, 8, 1, CLASSES, blocks_down=(1, 1, 1, 1)),
        16,
        [8, 16, 32],
        [32, 16, 8],
        64,
        [8, 8],
        lambda: SegResNet(3, 16, 1, 2),
    ),
    "SegResNetDS": known(
        lambda dims: SegResNetDS(dims, 8, 1, CLASSES, blocks_down=(1, 1, 1, 1)),
        16,
        [8, 16, 32],
        [32, 16, 8],
        64,
        [8, 8],
        lambda: SegResNetDS(3, 32, 1, 2),
    ),
    "DynUNet": known(
        lambda dims: DynUNet(dims, 1, CLASSES, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=(8, 16, 32, 64)),
        16,
        [8, 16, 32],
        [32, 16, 8],
        64,
        [16, 8],
        lambda: DynUNet(3, 1, 2, [3] * 5, [1, 2, 2, 2, 2], [2] * 4),
    ),
    "FlexibleUNet": known(
        lambda dims: FlexibleUNet(1, CLASSES, "resnet10", spatial_dims=dims, decoder_channels=(32, 16, 16, 8, 8)),
        32,
        [64, 64, 128, 256],
        [32, 16, 16, 8, 8],
        512,
        [8, 8],
        lambda: FlexibleUNet(1, 2, "resnet18", spatial_dims=3),
    ),
    "UNETR": known(
        unetr, 16, [8, 16, 32, 64], [64, 32, 16, 8], None, [16, 8], lambda: UNETR(1, 2, 96, norm_name="batch")
    ),
    "SwinUNETR": known(
        swin_unetr, 32, [12, 12, 24, 48], [96, 48, 24, 12, 12], 192, [24, 12], lambda: SwinUNETR(1, 2, feature_size=48)
    ),
    "MedNeXt": known(
        lambda dims: MedNeXt(
            dims, 4, 1, CLASSES, kernel_size=3, blocks_down=(1, 1), blocks_up=(1, 1), blocks_bottleneck=1
        ),
        16,
        [4, 8],
        [8, 4],
        16,
        None,
        lambda: MedNeXt(3, 32, 1, 2),
    ),
}


# --- the methods ---------------------------------------------------------------------------------------------------


def positions(name: str) -> str:
    return "P6" if NETS[name].bottleneck else "P5"


def excitation(channels: int) -> int:
    """Parameters of a channel and a spatial excitation with r = 2."""
    hidden = channels // 2
    return 2 * channels * hidden + hidden + channels + channels + 1


def recalibrated(name: str, dims: int) -> int:
    case = NETS[name]
    widths = [*case.encoders, *case.decoders, *([case.bottleneck, CLASSES] if case.bottleneck else [])]
    return sum(excitation(width) + 1 for width in widths)


def focused(name: str, dims: int) -> int:
    # the attention of half as many channels, and the gate's strength
    return sum(3**dims * c * (c // 2) + c // 2 + c // 2 * 4 + 4 + 1 for c in NETS[name].focus)


def edge_stream(name: str, dims: int) -> int:
    """The closed form of tests/nets/test_egcnn.py, with a fusion of the classes and one edge channel."""
    stream, total = stream_of(NETS[name].build(dims)), 0
    channels, taps = stream.decoder_channels[0], 3**dims
    for width in stream.encoder_channels[-3::-1]:
        total += 2 * channels + 2 * width + taps * width * (channels + width) + (channels != width) * channels * width
        total += 2 * (width + 1) + width**2
        channels = width
    return total + channels + 1 + (CLASSES + 1) * CLASSES + CLASSES


METHODS: dict[str, tuple[Callable, Callable[[str, int], int]]] = {
    "recalibrate": (lambda net, name: recalibrate(net, positions=positions(name), zero_effect=True), recalibrated),
    "autofocus": (lambda net, name: autofocus(net, last=2), focused),
    "EGCNN": (lambda net, name: EGCNN(net), edge_stream),
}
REFUSED = {
    ("autofocus", "VNet"): (ValueError, "VNet runs 0", "none: kernels are 5x5"),
    ("autofocus", "MedNeXt"): (ValueError, "MedNeXt runs 0", "none: kernels are depthwise"),
    ("EGCNN", "MedNeXt"): (TypeError, "no stream is known for MedNeXt", "by `NamedStream`"),
}
CANNOT_SCRIPT = {
    "SwinUNETR": "MONAI's own code has keyword-only arguments",
    "MedNeXt": "MONAI's own code calls super().forward",
}
CANNOT_COMPILE = {
    "BasicUNet": "MONAI's UpCat asks torch.jit.isinstance",
    "FlexibleUNet": "MONAI's UpCat asks torch.jit.isinstance",
    "SwinUNETR": "MONAI checks the size with numpy",
}
CELLS = [(method, name) for method in METHODS for name in NETS if (method, name) not in REFUSED]
OURS = [cell for cell in CELLS if cell[0] != "EGCNN"]  # tests/nets/test_egcnn.py has the rest of the edge stream's


def adapted(method: str, name: str, dims: int, stirred: bool = False) -> nn.Module:
    """A network with attention, without effect yet or with some."""
    network = METHODS[method][0](NETS[name].build(dims), name).eval()
    for module in network.modules():
        if stirred and isinstance(module, (ZeroInitResidual, ZeroInitGate)):
            nn.init.constant_(module.strength, 0.7)
    if stirred and isinstance(network, EGCNN):
        nn.init.normal_(network.fusion.weight)
    return network


def image(name: str, dims: int, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, *[NETS[name].side] * dims)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# --- every cell ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "name", "dims"),
    [
        pytest.param(*cell, dims, marks=pytest.mark.slow if dims == 3 and cell[0] == "EGCNN" else ())
        for cell in CELLS
        for dims in (2, 3)
    ],
)
def test_at_first_the_output_is_that_of_the_network_and_the_parameters_added_are_those_of_the_closed_form(
    method, name, dims
):
    network, x = NETS[name].build(dims).eval(), image(name, dims)
    before = count(network)
    with torch.no_grad():
        expected = network(x)
        network = METHODS[method][0](network, name).eval()
        output = network(x)
    assert output.shape == (1, CLASSES, *x.shape[2:])
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 if method == "autofocus" else 0)
    assert count(network) - before == METHODS[method][1](name, dims)


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("method", "name"), CELLS)
def test_after_one_step_of_an_optimiser_every_new_parameter_has_a_gradient(method, name, dims):
    plain = NETS[name].build(dims)
    old = {id(parameter) for parameter in plain.parameters()}
    network = METHODS[method][0](plain, name).train()
    new = {key: value for key, value in network.named_parameters() if id(value) not in old}
    for module in network.modules():
        if isinstance(module, ChannelGate):  # a small layer may start with all its units off
            nn.init.ones_(module.fc1.bias)
        elif isinstance(module, _DropoutNd):  # VNet drops whole images of a batch where they are 2D
            module.p = 0.0
    x = image(name, dims, batch=2)
    forward = network.forward_all if isinstance(network, EGCNN) else lambda x: [network(x)]
    optimizer = torch.optim.Adam(new.values(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        sum((output * torch.randn_like(output)).sum() for output in forward(x)).backward()
        optimizer.step()
    assert new
    assert [key for key, value in new.items() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize(("method", "name"), CELLS)
def test_a_sliding_window_of_the_networks_size_runs_over_a_larger_image(method, name):
    network, x = adapted(method, name, 2, stirred=True), image(name, 2)
    side = NETS[name].side
    with torch.no_grad():
        torch.testing.assert_close(sliding_window_inference(x, (side, side), 1, network), network(x))
        large = sliding_window_inference(torch.rand(1, 1, side + 5, side), (side, side), 2, network)
    assert large.shape == (1, CLASSES, side + 5, side)


@pytest.mark.parametrize(("method", "name"), OURS)
def test_capture_sees_every_gate_once_and_a_copy_is_independent(method, name):
    network, x = adapted(method, name, 2, stirred=True), image(name, 2)
    with capture_attention(network) as maps:
        expected = network(x)
    case = NETS[name]
    widths = len(case.encoders) + len(case.decoders) + 2 * (case.bottleneck is not None)
    gates = {"recalibrate": 2 * widths, "autofocus": 2}
    assert len(maps) == gates[method]
    twin = copy.deepcopy(network)
    assert torch.equal(twin(x), expected)
    for parameter in twin.parameters():
        nn.init.zeros_(parameter)
    assert torch.equal(network(x), expected)
    assert not torch.equal(twin(x), expected)


@pytest.mark.parametrize(("method", "name"), REFUSED)
def test_what_cannot_be_done_is_refused_and_says_why(method, name):
    error, message, _ = REFUSED[method, name]
    with pytest.raises(error, match=message):
        METHODS[method][0](NETS[name].build(2), name)


# --- compilers -----------------------------------------------------------------------------------------------------

LARGE = ("FlexibleUNet", "UNETR", "SwinUNETR")
COMPILED = [
    pytest.param(method, name, dims, marks=pytest.mark.slow if dims == 3 or name in LARGE else ())
    for method, name in OURS
    for dims in (2, 3)
]


def same(compiled: Callable, network: nn.Module, x: torch.Tensor, atol: float = 1e-5) -> None:
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), network(x), atol=atol, rtol=0)


@pytest.mark.parametrize(("method", "name", "dims"), COMPILED)
def test_script_equals_eager(method, name, dims):
    network = adapted(method, name, dims, stirred=True)
    if name in CANNOT_SCRIPT:
        with pytest.raises((RuntimeError, torch.jit.frontend.NotSupportedError)):
            torch.jit.script(NETS[name].build(dims))
        pytest.skip(CANNOT_SCRIPT[name])
    same(torch.jit.script(network), network, image(name, dims))


@pytest.mark.parametrize(("method", "name", "dims"), COMPILED)
def test_export_equals_eager(method, name, dims):
    network, x = adapted(method, name, dims, stirred=True), image(name, dims)
    same(torch.export.export(network, (x,)).module(), network, x)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "name"), OURS)
def test_compile_without_graph_break_equals_eager(method, name):
    network, x = adapted(method, name, 2, stirred=True), image(name, 2)
    torch._dynamo.reset()
    if name in CANNOT_COMPILE:
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(NETS[name].build(2).eval(), backend="aot_eager", fullgraph=True)(x)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=name not in CANNOT_COMPILE)
    same(compiled, network, x)


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("method", "name"), CELLS)
def test_onnx_equals_eager(method, name, dims, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    network, x = adapted(method, name, dims, stirred=True), image(name, dims)
    torch.onnx.export(network, (x,), tmp_path / "network.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    same(lambda x: torch.from_numpy(output), network, x, atol=1e-4)


# --- the table of the page -----------------------------------------------------------------------------------------


def table() -> str:
    """The rows of docs/adapt.md, for volumes of one channel and two classes."""
    rows = [
        "| network | parameters | `recalibrate` P5 | positions | `autofocus` last=2 | `EGCNN` | TorchScript |",
        "|---|---:|---:|---|---:|---:|---|",
    ]
    for name, case in NETS.items():
        with torch.device("cpu" if name == "SwinUNETR" else "meta"):  # its constructor reads a tensor's values
            plain = case.usual().to("meta")
        with torch.device("meta"):
            cells = {"recalibrate": lambda net: recalibrate(net), "autofocus": lambda net: autofocus(net, last=2)}
            cells["EGCNN"] = EGCNN
            added = {
                method: REFUSED[method, name][2]
                if (method, name) in REFUSED
                else f"+{count(apply(copy.deepcopy(plain))) - count(plain):,}"
                for method, apply in cells.items()
            }
            possible = "P1 to P6" if places_of(plain).bottleneck else "not P3, P6"
        rows.append(
            f"| `{name}` | {count(plain):,} | {added['recalibrate']} | {possible} | {added['autofocus']} | "
            f"{added['EGCNN']} | {'no: ' + CANNOT_SCRIPT[name] if name in CANNOT_SCRIPT else 'yes'} |"
        )
    return "\n".join(rows)


def test_the_page_has_the_table_of_what_works_for_which_network():
    assert table() in PAGE.read_text(), f"the table of {PAGE.name} should be\n{table()}"


# --- what the page says of MONAI's Quicknat -------------------------------------------------------------------------


@pytest.mark.parametrize("se_block", ["SSE", "CSSE"])
@pytest.mark.skipif(find_spec("squeeze_and_excitation") is not None, reason="the package that MONAI asks for is here")
def test_monais_quicknat_with_spatial_excitation_wants_another_package(se_block):
    with pytest.raises(ImportError, match="install squeeze_and_excitation locally"):
        Quicknat(se_block=se_block)


def test_monais_quicknat_shares_one_channel_excitation_and_ours_has_one_for_each_block():
    calls: list[int] = []
    theirs, x = Quicknat(num_classes=CLASSES, num_filters=8, se_block="CSE").eval(), torch.rand(1, 1, 32, 32)
    shared = [module for module in theirs.modules() if isinstance(module, ChannelSELayer)]
    assert len(shared) == 1
    shared[0].register_forward_hook(lambda *_: calls.append(1))
    assert theirs(x).shape == (1, CLASSES, 32, 32)
    assert len(calls) == 18
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        theirs(torch.rand(1, 1, 36, 45))
    for se in ("cse", "sse", "scse"):
        ours = SCSEFCDenseNet(2, 1, CLASSES, features=8, bottleneck="dense", act="prelu", se=se).eval()
        with capture_attention(ours) as maps:
            assert ours(torch.rand(1, 1, 36, 45)).shape == (1, CLASSES, 36, 45)
        assert len(maps) == 8 * (2 if se == "scse" else 1)


def test_ours_has_the_parameters_of_quicknat():
    assert count(SCSEFCDenseNet(2, 1, 28, bottleneck="dense", act="prelu", se=None)) == 3_516_971
