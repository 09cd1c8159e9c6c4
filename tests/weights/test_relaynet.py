# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import copy
import io
import pickle
import struct
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monai_attn import nets
from monai_attn.errors import DataError
from monai_attn.weights import load_relaynet_weights

FILTERS, CLASSES = 6, 4


# --- the network of relaynet_pytorch, restated by its description -------------------------------------------------


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, filters: int, kernel: tuple[int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, filters, kernel, padding=(kernel[0] // 2, kernel[1] // 2))
        self.batchnorm = nn.BatchNorm2d(filters)
        self.prelu = nn.PReLU()

    def forward(self, x):
        return self.prelu(self.batchnorm(self.conv(x)))


class EncoderBlock(BasicBlock):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.maxpool = nn.MaxPool2d(2, 2, return_indices=True)


class DecoderBlock(BasicBlock):
    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.unpool = nn.MaxUnpool2d(2, 2)

    def forward(self, x, skip, indices):
        return super().forward(torch.cat([skip, self.unpool(x, indices)], dim=1))


class ClassifierBlock(nn.Module):
    def __init__(self, filters: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(filters, classes, 1)
        self.softmax = nn.Softmax2d()

    def forward(self, x):
        return self.conv(x)


class ReLayNet(nn.Module):
    def __init__(self, filters: int = FILTERS, classes: int = CLASSES, kernel: tuple[int, int] = (3, 7)) -> None:
        super().__init__()
        self.encode1 = EncoderBlock(1, filters, kernel)
        self.encode2 = EncoderBlock(filters, filters, kernel)
        self.encode3 = EncoderBlock(filters, filters, kernel)
        self.bottleneck = BasicBlock(filters, filters, kernel)
        self.decode1 = DecoderBlock(2 * filters, filters, kernel)
        self.decode2 = DecoderBlock(2 * filters, filters, kernel)
        self.decode3 = DecoderBlock(2 * filters, filters, kernel)
        self.classifier = ClassifierBlock(filters, classes)

    def forward(self, x):
        skips, indices = [], []
        for encoder in (self.encode1, self.encode2, self.encode3):
            skips.append(encoder(x))
            x, index = encoder.maxpool(skips[-1])
            indices.append(index)
        x = self.bottleneck(x)
        for decoder in (self.decode1, self.decode2, self.decode3):
            x = decoder(x, skips.pop(), indices.pop())
        return self.classifier(x)


PLACES = {
    "relay_net": (ReLayNet,),
    "net_api.sub_module": (BasicBlock, EncoderBlock, DecoderBlock, ClassifierBlock),
}


@contextlib.contextmanager
def importable(package: str = "relaynet_pytorch"):
    """Let the classes above live in a package of the authors' code as long as a file is written, and then be gone."""
    with pytest.MonkeyPatch.context() as patch:
        for parent in (package, f"{package}.net_api"):
            patch.setitem(sys.modules, parent, types.ModuleType(parent))
        for place, classes in PLACES.items():
            module = types.ModuleType(f"{package}.{place}")
            module.__file__ = __file__
            patch.setitem(sys.modules, module.__name__, module)
            for kind in classes:
                setattr(module, kind.__name__, kind)
                patch.setattr(kind, "__module__", module.__name__)
        yield
    assert not any(name.startswith(package) for name in sys.modules)


def trained(seed: int = 0, **options: Any) -> ReLayNet:
    """The authors' network with statistics that matter, as PyTorch before 0.4.1 had it."""
    torch.manual_seed(seed)
    network = ReLayNet(**options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            del module._buffers["num_batches_tracked"]
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.4)
    return network.eval()


def ours(**options: Any) -> nets.ReLayNet:
    options = {"features": FILTERS, "se": None, "kernel_size": (3, 7), "act": "prelu", **options}
    return nets.ReLayNet(2, 1, options.pop("out_channels", CLASSES), **options).eval()


def save(network: nn.Module, path: Path, zipped: bool) -> Path:
    with importable():
        torch.save(network, path, _use_new_zipfile_serialization=zipped)
    return path


def equal(network: nn.Module, theirs: nn.Module) -> None:
    x = torch.randn(2, 1, 24, 32)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 1e-2
        assert (network(x) - expected).abs().max() <= 1e-6


# --- files of whole networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_a_whole_network_gives_the_authors_outputs_without_its_classes(tmp_path, zipped):
    theirs = trained()
    path = save(theirs, tmp_path / "relaynet_epoch20.model", zipped)
    assert path.read_bytes().startswith(b"PK") is zipped
    assert b"sub_module" in path.read_bytes()
    assert (b"def forward(self, x):" in path.read_bytes()) is not zipped  # the older format brings the source along
    for source in (path, str(path)):
        network = ours()
        assert load_relaynet_weights(network, source) is network
        equal(network, theirs)
        assert not network.training
    assert not any(name.startswith("relaynet_pytorch") for name in sys.modules)


class Backend:
    pass


def old_file(network: nn.Module, path: Path, release: str) -> Path:
    """Write a whole network as PyTorch 0.3 or 0.4.1 did, by the documented layout of its files."""
    storages: dict[str, torch.Tensor] = {}
    seen: set[type] = set()

    class Numbers:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

    class OldPickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, type) and issubclass(obj, nn.Module) and obj not in seen:
                seen.add(obj)
                return "module", obj, "sub_module.py", f"class {obj.__name__}: …"
            if isinstance(obj, Numbers):
                key = str(94_000_000_000_000 + len(storages))
                storages[key] = obj.tensor
                return "storage", torch.FloatStorage, key, "cuda:0", obj.tensor.numel(), None
            return None

        def reducer_override(self, obj):
            if isinstance(obj, nn.Parameter) and release == "0.3":
                return nn.Parameter, (obj.data,), (True, False, OrderedDict())
            if isinstance(obj, nn.Parameter):
                return nn.Parameter, (obj.data, True)
            if isinstance(obj, torch.Tensor):
                args = (Numbers(obj), 0, tuple(obj.shape), obj.stride())
                if release == "0.3":
                    return torch._utils._rebuild_tensor, args
                return torch._utils._rebuild_tensor_v2, (*args, False, None)
            if isinstance(obj, Backend):
                return sys.modules["torch.nn.backends.thnn"]._get_thnn_function_backend, ()
            return NotImplemented

    def _get_thnn_function_backend():
        raise AssertionError("called")

    file = io.BytesIO()
    for head in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
        pickle.dump(head, file, protocol=2)
    old = copy.deepcopy(network)
    for module in old.modules():
        module._backend = Backend()
    with importable(), pytest.MonkeyPatch.context() as patch:
        place = types.ModuleType("torch.nn.backends.thnn")
        place._get_thnn_function_backend = _get_thnn_function_backend
        _get_thnn_function_backend.__module__ = place.__name__
        _get_thnn_function_backend.__qualname__ = _get_thnn_function_backend.__name__
        patch.setitem(sys.modules, place.__name__, place)
        OldPickler(file, protocol=2).dump(old)
    pickle.dump(sorted(storages), file, protocol=2)
    for _key, tensor in sorted(storages.items()):
        file.write(struct.pack("<q", tensor.numel()) + tensor.numpy().astype("<f4").tobytes())
    path.write_bytes(file.getvalue())
    return path


@pytest.mark.parametrize("release", ["0.3", "0.4.1"])
def test_files_as_old_pytorch_wrote_them_load(tmp_path, release):
    theirs = trained()
    network = ours()
    load_relaynet_weights(network, old_file(theirs, tmp_path / "relaynet_good.model", release))
    equal(network, theirs)
    assert network.state_dict()["encoders.0.0.adn.N.num_batches_tracked"] == 0


def test_the_released_size_has_51_tensors_and_777424_parameters(tmp_path):
    theirs = trained(filters=64, classes=9)
    assert len(theirs.state_dict()) == 51
    network = ours(features=64, out_channels=9)
    assert sum(parameter.numel() for parameter in network.parameters()) == 777_424
    load_relaynet_weights(network, old_file(theirs, tmp_path / "relaynet_epoch1.model", "0.3"))
    equal(network, theirs)


# --- state dicts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dicts_load_from_a_file_and_from_memory(tmp_path, wrap, prefix):
    theirs = trained()
    state = {f"{prefix}{key}": value for key, value in theirs.state_dict().items()}
    path = tmp_path / "state.pth"
    torch.save(wrap(state), path)
    for source in (wrap(state), path):
        network = ours()
        load_relaynet_weights(network, source)
        equal(network, theirs)


def test_the_counts_of_batches_are_taken_where_there_are_some():
    theirs = ReLayNet()
    theirs.encode1.batchnorm.num_batches_tracked.fill_(7)
    network = ours()
    load_relaynet_weights(network, theirs.state_dict())
    assert network.state_dict()["encoders.0.0.adn.N.num_batches_tracked"] == 7


# --- what is refused ----------------------------------------------------------------------------------------------


def refused(network: nets.ReLayNet, source: Any, *expected: str) -> None:
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(DataError) as caught:
        load_relaynet_weights(network, source)
    for text in expected:
        assert text in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "problems"),
    [
        ({"features": 8}, ["of another shape"]),
        ({"out_channels": 10}, ["2 of another shape: classifier.conv.weight (4, 6, 1, 1), expected (10, 6, 1, 1)"]),
        ({"kernel_size": (7, 3)}, ["7 of another shape: encode1.conv.weight (6, 1, 3, 7), expected (6, 1, 7, 3)"]),
        ({"act": "relu"}, ["7 not of this network: encode1.prelu.weight"]),
        ({"se": "scse"}, ["36 missing in it: encode1.SELayer"]),
        ({"depth": 4}, ["missing in it: encode4.conv.weight"]),
        ({"depth": 2}, ["not of this network: ", "encode3"]),
        ({"norm": None}, ["not of this network: ", "encode1.batchnorm.weight"]),
    ],
)
def test_a_network_of_another_build_is_refused_and_keeps_its_weights(options, problems):
    refused(ours(**options), trained().state_dict(), *problems, "build the ReLayNet")


def test_one_entry_too_few_or_too_many_is_named(tmp_path):
    theirs = trained()
    del theirs.decode2.prelu._parameters["weight"]
    refused(
        ours(), old_file(theirs, tmp_path / "old.model", "0.3"), "old.model", "1 missing in it: decode2.prelu.weight"
    )
    theirs = trained()
    theirs.decode2.extra = nn.Linear(2, 2, bias=False)
    refused(ours(), old_file(theirs, tmp_path / "new.model", "0.3"), "1 not of this network: decode2.extra.weight")


class Harm:
    """A pickle of it would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_network_with_code_in_its_file_is_refused_and_the_code_does_not_run(tmp_path, zipped):
    theirs, mark = trained(), tmp_path / "mark"
    theirs.encode1.notes = Harm(mark)
    path = save(theirs, tmp_path / "harm.model", zipped)
    refused(ours(), path, "harm.model", "open", "fix")
    assert not mark.exists()
    with importable():  # the file is harmful: unpickled, it would have run
        torch.load(path, weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, zipped):
    content = save(trained(), tmp_path / "whole.model", zipped).read_bytes()
    path = tmp_path / "cut.model"
    for length in (0, 3, 60, len(content) // 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        refused(ours(), path, "cut.model", "it cannot be read as a network", "fix")


def test_a_file_that_is_missing_or_something_else_is_refused(tmp_path):
    refused(ours(), tmp_path / "no.model", "no.model", "there is no such file")
    for number, content in enumerate(([1, 2], {"epoch": 3}, {}, torch.zeros(3))):
        path = tmp_path / f"{number}.model"
        torch.save(content, path)
        refused(ours(), path, f"{number}.model", "expected a state dict of tensors, found")
