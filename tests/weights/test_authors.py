# SPDX-License-Identifier: Apache-2.0
import copy
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_attn.errors import ConfigError, DataError
from monai_attn.nets import AFNet, ReLayNet, SCSEFCDenseNet
from monai_attn.weights import load_autofocus_weights, load_pretrained, load_quicknat_weights, load_relaynet_weights

from ..conftest import count

ROOT = Path(__file__).parents[2]
State = dict[str, torch.Tensor]

# --- Autofocus-Layer: a state dict with the authors' names, and their graph by its equations --------------------------

CHANNELS = (2, 2, 4, 4, 4, 4, 6, 6)
# which layers of the three blocks are autofocus layers in Basic, AFN-1, AFN-3 and AFN-6
AUTOFOCUS = {
    0: [(False, False), (False, False), (False, False)],
    1: [(False, False), (False, False), (False, True)],
    3: [(False, False), (False, True), (True, True)],
    6: [(True, True), (True, True), (True, True)],
}


def autofocus_state(n: int = 1) -> State:
    """Weights of Basic or AFN-n, with the biases in front of normalization that have no effect."""
    state: State = {}

    def conv(name: str, inputs: int, outputs: int, side: int = 3) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side, side) * (2 / (inputs * side**3)) ** 0.5
        state[f"{name}.bias"] = torch.randn(outputs)

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = torch.rand(channels) + 0.5
        state[f"{name}.bias"] = torch.rand(channels) - 0.2
        state[f"{name}.running_mean"] = torch.randn(channels)
        state[f"{name}.running_var"] = torch.rand(channels) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    widths = (2, *CHANNELS)
    for layer in (1, 2):
        conv(f"conv{layer}", widths[layer - 1], widths[layer])
        norm(f"bn{layer}", widths[layer])
    for block, kinds in enumerate(AUTOFOCUS[n]):
        prefix = f"layers.{block}" if n else f"layer{3 + block}"
        into, middle, out = widths[2 + 2 * block : 5 + 2 * block]
        for number, (kind, inputs, outputs) in enumerate(zip(kinds, (into, middle), (middle, out)), 1):
            conv(f"{prefix}.conv{number}", inputs, outputs)
            if not kind:
                norm(f"{prefix}.bn{number}", outputs)
                continue
            attention = f"{prefix}.convatt" + (str(number) if kinds[0] else "")
            conv(f"{attention}1", inputs, inputs // 2)
            conv(f"{attention}2", inputs // 2, 4, side=1)
            for k in range(4):
                norm(f"{prefix}.bn_list{number}.{k}", outputs)
        if into != out:
            conv(f"{prefix}.downsample.0", into, out, side=1)
            norm(f"{prefix}.downsample.1", out)
    conv("fc", widths[-1], 3, side=1)
    return state


def autofocus_output(state: State, x: torch.Tensor, training: bool) -> torch.Tensor:
    """Unpadded trunk, autofocus layers with 0, 4, 8 and 12 zeros."""

    def conv(u, name, **options):
        return F.conv3d(u, state[f"{name}.weight"], state[f"{name}.bias"], **options)

    def norm(u, name):
        entries = [state[f"{name}.{entry}"] for entry in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(u, *entries, training=training, momentum=0.1)

    def inside(u, margin):
        return u[(..., *[slice(margin, -margin)] * 3)]

    def layer(u, prefix, number, kind, single):
        if not kind:
            return norm(conv(u, f"{prefix}.conv{number}", dilation=2), f"{prefix}.bn{number}")
        attention = f"{prefix}.convatt" + ("" if single else str(number))
        weights = inside(conv(conv(u, f"{attention}1").relu(), f"{attention}2").softmax(1), 1)
        total = 0
        for k, dilation in enumerate((2, 6, 10, 14)):
            bias = state[f"{prefix}.conv{number}.bias"] if k == 0 else None
            kernel = state[f"{prefix}.conv{number}.weight"]
            features = F.conv3d(u, kernel, bias, dilation=dilation, padding=dilation - 2)
            total = total + weights[:, k : k + 1] * norm(features, f"{prefix}.bn_list{number}.{k}")
        return total

    for number in (1, 2):
        x = norm(conv(x, f"conv{number}"), f"bn{number}").relu()
    for block in range(3):
        prefix = f"layer{3 + block}" if "layer3.conv1.weight" in state else f"layers.{block}"
        kinds = [f"{prefix}.bn{number}.weight" not in state for number in (1, 2)]
        hidden = layer(x, prefix, 1, kinds[0], single=False).relu()
        output = layer(hidden, prefix, 2, kinds[1], single=not kinds[0])
        residual = inside(x, 4)
        if f"{prefix}.downsample.0.weight" in state:
            residual = norm(conv(residual, f"{prefix}.downsample.0"), f"{prefix}.downsample.1")
        x = (output + residual).relu()
    return conv(x, "fc")


def afnet(**options: Any) -> AFNet:
    return AFNet(
        3,
        2,
        options.pop("out_channels", 3),
        **{"n_autofocus": 1, "channels": CHANNELS, "padding": "official", **options},
    )


@pytest.mark.parametrize(("n", "training"), [(0, False), (1, False), (3, True), (6, False)])
def test_an_afnet_gives_the_outputs_of_the_authors_graph(n, training):
    state = {key: value.double() for key, value in autofocus_state(n).items()}
    network = load_autofocus_weights(afnet(n_autofocus=n).double(), state).train(training)
    x = torch.randn(2, 2, 30, 30, 29, dtype=torch.float64)
    expected = autofocus_output(copy.deepcopy(state), x, training)
    assert expected.std() > 1e-2
    for grad in (True, False) if not training else (True,):  # without gradients the convolution is folded
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(network(x), expected, atol=1e-9, rtol=1e-9)


# --- quickNAT_pytorch and relaynet_pytorch, restated by their descriptions --------------------------------------------


class SpatialSELayer(nn.Module):
    def __init__(self, filters: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(filters, 1, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.conv(x))


class DenseBlock(nn.Module):
    """Two 5x5 convolutions and a 1x1, each behind batch norm and one shared PReLU, then excitation and dropout."""

    def __init__(self, inputs: int, filters: int, spatial: bool) -> None:
        super().__init__()
        if spatial:
            self.SELayer = SpatialSELayer(filters)
        widths = [inputs, inputs + filters, inputs + 2 * filters]
        for number, (width, side) in enumerate(zip(widths, (5, 5, 1)), 1):
            setattr(self, f"batchnorm{number}", nn.BatchNorm2d(width))
            setattr(self, f"conv{number}", nn.Conv2d(width, filters, side, padding=side // 2))
        self.prelu = nn.PReLU()
        self.drop_out = nn.Dropout2d(0.2)

    def dense(self, x):
        first = self.conv1(self.prelu(self.batchnorm1(x)))
        second = self.conv2(self.prelu(self.batchnorm2(torch.cat([x, first], 1))))
        return self.conv3(self.prelu(self.batchnorm3(torch.cat([x, first, second], 1))))

    def forward(self, x):
        x = self.dense(x)
        return self.drop_out(self.SELayer(x) if hasattr(self, "SELayer") else x)


class WideBlock(nn.Module):
    def __init__(self, inputs: int, filters: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, (3, 7), padding=(1, 3))
        self.batchnorm = nn.BatchNorm2d(filters)
        self.prelu = nn.PReLU()

    def forward(self, x):
        return self.prelu(self.batchnorm(self.conv(x)))

    dense = forward


class Classifier(nn.Module):
    def __init__(self, filters: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(filters, classes, 1)


class EncoderDecoder(nn.Module):
    """QuickNAT has an excitation in its bottleneck that it does not use, and its decoder 4 is the deepest one."""

    def __init__(self, block: Callable[[int, int], nn.Module], decoders: tuple[int, ...], filters: int, classes: int):
        super().__init__()
        self.order = decoders
        for number in sorted(decoders):
            setattr(self, f"encode{number}", block(1 if number == 1 else filters, filters))
            setattr(self, f"decode{number}", block(2 * filters, filters))
        self.bottleneck = block(filters, filters)
        self.classifier = Classifier(filters, classes)

    def forward(self, x):
        skips, indices = [], []
        for number in sorted(self.order):
            skips.append(getattr(self, f"encode{number}")(x))
            x, index = F.max_pool2d(skips[-1], 2, 2, return_indices=True)
            indices.append(index)
        x = self.bottleneck.dense(x)
        for number in self.order:
            unpooled = F.max_unpool2d(x, indices.pop(), 2, 2)
            x = getattr(self, f"decode{number}")(torch.cat([skips.pop(), unpooled], 1))
        return self.classifier.conv(x)


def trained(network: nn.Module) -> nn.Module:
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif "batchnorm" in name or "prelu" in name:
            tensor.uniform_(0.2, 1)
    return network.eval()


def quicknat(spatial: bool = True, filters: int = 6, classes: int = 5) -> nn.Module:
    return trained(EncoderDecoder(lambda a, b: DenseBlock(a, b, spatial), (4, 1, 2, 3), filters, classes))


def relaynet(filters: int = 6, classes: int = 4) -> nn.Module:
    return trained(EncoderDecoder(WideBlock, (1, 2, 3), filters, classes))


def our_quicknat(**options: Any) -> SCSEFCDenseNet:
    options = {"features": 6, "se": "sse", "bottleneck": "dense", "act": "prelu", **options}
    return SCSEFCDenseNet(options.pop("spatial_dims", 2), 1, options.pop("out_channels", 5), **options).eval()


def our_relaynet(**options: Any) -> ReLayNet:
    options = {"features": 6, "se": None, "kernel_size": (3, 7), "act": "prelu", **options}
    return ReLayNet(2, 1, options.pop("out_channels", 4), **options).eval()


def equal(network: nn.Module, theirs: nn.Module) -> None:
    x = torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 1e-2
        assert (network(x) - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("spatial", [False, True])
def test_a_dense_net_gives_the_outputs_of_quicknat(spatial):
    theirs, network = quicknat(spatial), our_quicknat(se="sse" if spatial else None)
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith("bottleneck.SELayer")}
    assert (len(state) < len(theirs.state_dict())) == spatial
    load_quicknat_weights(our_quicknat(se="sse" if spatial else None), state)  # which does not use that one
    assert load_quicknat_weights(network, theirs.state_dict()) is network
    equal(network, theirs)
    assert not network.training


def test_a_relaynet_gives_the_outputs_of_the_authors():
    theirs, network = relaynet(), our_relaynet()
    assert load_relaynet_weights(network, theirs.state_dict()) is network
    equal(network, theirs)


def test_the_authors_sizes_have_3516971_and_777424_parameters():
    dense, plain = our_quicknat(features=64, out_channels=28, se=None), our_relaynet(features=64, out_channels=9)
    assert (count(dense), count(plain)) == (3_516_971, 777_424)
    load_quicknat_weights(dense, quicknat(False, filters=64, classes=28).state_dict())
    load_relaynet_weights(plain, relaynet(filters=64, classes=9).state_dict())


# --- all three --------------------------------------------------------------------------------------------------------


class Code(NamedTuple):
    load: Callable
    ours: Callable[..., nn.Module]
    state: Callable[[], State]
    entry: str  # of their state dict


CODES = {
    "autofocus": Code(load_autofocus_weights, afnet, autofocus_state, "layers.0.bn1.weight"),
    "quicknat": Code(load_quicknat_weights, our_quicknat, lambda: quicknat().state_dict(), "decode4.conv2.bias"),
    "relaynet": Code(load_relaynet_weights, our_relaynet, lambda: relaynet().state_dict(), "decode2.prelu.weight"),
}


@pytest.fixture(params=CODES)
def code(request) -> Code:
    return CODES[request.param]


def test_a_checkpoint_loads_from_its_file_or_from_memory_and_stays_as_it_was(tmp_path, code):
    state, path = code.state(), tmp_path / "checkpoint_epoch_9.pth.tar"
    wrapped = {f"module.{key}": value for key, value in state.items()}
    optimizer = torch.optim.Adam(code.ours().parameters())
    torch.save({"epoch": 10, "arch": "net", "state_dict": wrapped, "optimizer": optimizer.state_dict()}, path)
    before = copy.deepcopy(state)
    loaded = [code.load(code.ours(), source).state_dict() for source in (path, str(path), state, {"state_dict": state})]
    for mine in loaded[1:]:
        assert all(torch.equal(mine[key], value) for key, value in loaded[0].items())
    assert {int(value) for key, value in loaded[0].items() if key.endswith("num_batches_tracked")} == {7}
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in before)


def test_the_authors_weights_start_a_training_with_other_classes(tmp_path, code):
    state, fewer = code.state(), code.ours(out_channels=2)
    whole = code.load(code.ours(), state).state_dict()
    torch.save(state, tmp_path / "theirs.pth.tar")
    load_pretrained(fewer, tmp_path / "theirs.pth.tar")
    same = [key for key, value in fewer.state_dict().items() if torch.equal(value, whole[key])]
    assert fewer.state_dict().keys() - same == {"classifier.weight", "classifier.bias"}


def test_a_checkpoint_from_before_pytorch_counted_batches_loads(code):
    state = {key: value for key, value in code.state().items() if not key.endswith("num_batches_tracked")}
    loaded = code.load(code.ours(), state).state_dict()
    assert {int(value) for key, value in loaded.items() if key.endswith("num_batches_tracked")} == {0}


def refused(code: Code, network: nn.Module, source: Any, *expected: str, kind: type[Exception] = DataError) -> None:
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(kind) as caught:
        code.load(network, source)
    for text in expected:
        assert text in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_one_entry_too_few_too_many_or_of_another_shape_is_named(code):
    state, entry = code.state(), code.entry
    shape = tuple(state[entry].shape)
    without = {key: value for key, value in state.items() if key != entry}
    refused(code, code.ours(), without, f"1 missing in it: {entry}")
    refused(code, code.ours(), {**state, "extra": torch.zeros(1)}, "1 not of this network: extra")
    refused(code, code.ours(), {**state, entry: torch.zeros(9)}, f"1 of another shape: {entry} (9,), expected {shape}")


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("autofocus", {"n_autofocus": 2}, "missing in it"),
        ("autofocus", {"n_autofocus": 0}, "not of this network"),
        ("autofocus", {"norm": "instance"}, "not of this network: conv1.bias, bn1.weight"),
        ("autofocus", {"share_weights": False}, "1 of another shape: layers.2.conv2.weight"),
        ("quicknat", {"out_channels": 28}, "2 of another shape: classifier.conv.weight (5, 6, 1, 1), expected (28, 6,"),
        ("quicknat", {"bottleneck": "conv1x1"}, "missing in it: bottleneck."),
        ("quicknat", {"se": None}, "16 not of this network: encode1.SELayer.conv.weight"),
        ("quicknat", {"positions": "P6"}, "4 missing in it: bottleneck.SELayer.conv.weight"),
        ("quicknat", {"spatial_dims": 3}, "of another shape"),
        ("relaynet", {"kernel_size": (7, 3)}, "7 of another shape: encode1.conv.weight (6, 1, 3, 7), expected (6,"),
        ("relaynet", {"act": "relu"}, "7 not of this network: encode1.prelu.weight"),
        ("relaynet", {"depth": 4}, "missing in it: encode4.conv.weight"),
    ],
)
def test_a_network_of_another_build_is_refused_and_keeps_its_weights(name, options, problem):
    network = CODES[name].ours(**options)
    refused(CODES[name], network, CODES[name].state(), problem, f"build the {type(network).__name__}")


def test_raw_skip_connections_would_give_other_outputs_and_are_refused():
    code = CODES["quicknat"]
    refused(code, code.ours(skip="raw"), code.state(), 'skip="recalibrated"', kind=ConfigError)


# --- whole networks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def whole(tmp_path, monkeypatch) -> Path:
    """A whole network, as the authors released theirs, with classes of a package that only the test has."""
    package = types.ModuleType("relaynet_pytorch")
    monkeypatch.setitem(sys.modules, package.__name__, package)
    for kind in (EncoderDecoder, WideBlock, Classifier):
        setattr(package, kind.__name__, kind)
        monkeypatch.setattr(kind, "__module__", package.__name__)
    torch.save(relaynet(), tmp_path / "network.model")
    return tmp_path / "network.model"


def test_a_whole_network_is_refused_with_the_page_that_tells_how_to_convert_it(whole):
    code = CODES["relaynet"]
    refused(code, code.ours(), whole, str(whole), "relaynet_pytorch.EncoderDecoder", "state dict", "docs/scse.md")


def test_the_lines_of_the_documentation_turn_a_whole_network_into_a_state_dict(whole):
    page = (ROOT / "docs" / "scse.md").read_text()
    (script,) = re.findall(r"<<'EOF'\n(.*?)\nEOF", page, flags=re.DOTALL)
    exec(script.replace("/files", str(whole.parent)), {})
    network = load_relaynet_weights(our_relaynet(), whole.with_name("state_dict.pth"))
    equal(network, torch.load(whole, weights_only=False))
