# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monai_attn.errors import ConfigError, DataError
from monai_attn.nets import SCSEFCDenseNet
from monai_attn.weights import load_quicknat_weights

FILTERS, CLASSES = 6, 5


# --- the network of quickNAT_pytorch, restated by its description -------------------------------------------------


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


class ClassifierBlock(nn.Module):
    def __init__(self, filters: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(filters, classes, 1)


class QuickNat(nn.Module):
    """Their bottleneck has an excitation that it does not use, and their decoder 4 is the deepest one."""

    def __init__(self, spatial: bool, filters: int = FILTERS, classes: int = CLASSES) -> None:
        super().__init__()
        for number in range(1, 5):
            setattr(self, f"encode{number}", DenseBlock(1 if number == 1 else filters, filters, spatial))
            setattr(self, f"decode{number}", DenseBlock(2 * filters, filters, spatial))
        self.bottleneck = DenseBlock(filters, filters, spatial)
        self.classifier = ClassifierBlock(filters, classes)

    def forward(self, x):
        skips, indices = [], []
        for encoder in (self.encode1, self.encode2, self.encode3, self.encode4):
            skips.append(encoder(x))
            x, index = nn.functional.max_pool2d(skips[-1], 2, 2, return_indices=True)
            indices.append(index)
        x = self.bottleneck.dense(x)
        for decoder in (self.decode4, self.decode1, self.decode2, self.decode3):
            unpooled = nn.functional.max_unpool2d(x, indices.pop(), 2, 2)
            x = decoder(torch.cat([skips.pop(), unpooled], 1))
        return self.classifier.conv(x)


def trained(spatial: bool, seed: int = 0, **options: Any) -> QuickNat:
    torch.manual_seed(seed)
    network = QuickNat(spatial, **options)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)
            module.num_batches_tracked.fill_(7)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.4)
        if isinstance(module, SpatialSELayer):
            nn.init.normal_(module.conv.weight)
    return network.eval()


def ours(spatial: bool, **options: Any) -> SCSEFCDenseNet:
    options = {"features": FILTERS, "se": "sse" if spatial else None, "bottleneck": "dense", "act": "prelu", **options}
    return SCSEFCDenseNet(2, 1, options.pop("out_channels", CLASSES), **options).eval()


def equal(network: SCSEFCDenseNet, theirs: QuickNat) -> None:
    x = torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 1e-2
        assert (network(x) - expected).abs().max() <= 1e-6


# --- what loads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spatial", [False, True])
def test_a_loaded_network_gives_the_outputs_of_the_authors(spatial):
    theirs, network = trained(spatial), ours(spatial)
    assert load_quicknat_weights(network, theirs.state_dict()) is network
    equal(network, theirs)
    assert not network.training
    assert network.state_dict()["decoders.0.norm2.num_batches_tracked"] == 7


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_checkpoint_of_their_solver_loads_from_its_path(tmp_path, prefix, zipped):
    theirs = trained(True)
    optimiser = torch.optim.Adam(theirs.parameters())
    path = tmp_path / "checkpoint_epoch_9.pth.tar"
    checkpoint = {
        "epoch": 10,
        "start_iteration": 300,
        "arch": "quicknat",
        "state_dict": {f"{prefix}{key}": value for key, value in theirs.state_dict().items()},
        "optimizer": optimiser.state_dict(),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimiser, 3).state_dict(),
    }
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    for source in (path, str(path), checkpoint):
        network = ours(True)
        load_quicknat_weights(network, source)
        equal(network, theirs)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_whole_network_saved_by_their_code_loads_without_it(tmp_path, monkeypatch, spatial, zipped):
    theirs, path = trained(spatial), tmp_path / "quicknat.model"
    homes = {
        "quicknat": (QuickNat,),
        "nn_common_modules.modules": (DenseBlock, ClassifierBlock),
        "squeeze_and_excitation.squeeze_and_excitation": (SpatialSELayer,),
    }
    with monkeypatch.context() as patch:
        for home, classes in homes.items():
            for name in (home.split(".")[0], home):
                patch.setitem(sys.modules, name, types.ModuleType(name))
            for kind in classes:
                setattr(sys.modules[home], kind.__name__, kind)
                patch.setattr(kind, "__module__", home)
        torch.save(theirs, path, _use_new_zipfile_serialization=zipped)
    assert not {"quicknat", "nn_common_modules", "squeeze_and_excitation"} & set(sys.modules)
    network = ours(spatial)
    load_quicknat_weights(network, path)
    equal(network, theirs)


def test_the_decoders_are_not_in_the_order_of_their_numbers():
    theirs = trained(False).state_dict()
    network = ours(False)
    load_quicknat_weights(network, theirs)
    for index, number in enumerate((4, 1, 2, 3)):
        assert torch.equal(network.decoders[index].conv1.weight, theirs[f"decode{number}.conv1.weight"])


def test_files_from_before_pytorch_counted_batches_load():
    theirs = trained(True)
    state = {key: value for key, value in theirs.state_dict().items() if not key.endswith("num_batches_tracked")}
    network = ours(True)
    load_quicknat_weights(network, state)
    equal(network, theirs)
    assert network.state_dict()["bottleneck.norm1.num_batches_tracked"] == 0


def test_the_unused_excitation_of_the_bottleneck_may_be_there_or_not():
    state = trained(True).state_dict()
    assert "bottleneck.SELayer.conv.weight" in state
    without = {key: value for key, value in state.items() if not key.startswith("bottleneck.SELayer")}
    for source in (state, without):
        load_quicknat_weights(ours(True), source)


def test_the_paper_s_size_has_3516971_parameters():
    theirs, network = trained(False, filters=64, classes=28), ours(False, features=64, out_channels=28)
    assert sum(parameter.numel() for parameter in network.parameters()) == 3_516_971
    load_quicknat_weights(network, theirs.state_dict())
    x = torch.rand(1, 1, 16, 16)
    with torch.no_grad():
        assert (network(x) - theirs(x)).abs().max() <= 1e-6


def test_the_given_state_dict_stays_as_it_was():
    state = trained(True).state_dict()
    before = copy.deepcopy(state)
    load_quicknat_weights(ours(True), state)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in before)


# --- what is refused ----------------------------------------------------------------------------------------------


def refused(network: SCSEFCDenseNet, source: Any, *expected: str, kind: type[Exception] = DataError) -> None:
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(kind) as caught:
        load_quicknat_weights(network, source)
    for text in expected:
        assert text in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"features": 8}, "of another shape"),
        ({"out_channels": 28}, "2 of another shape: classifier.conv.weight (5, 6, 1, 1), expected (28, 6, 1, 1)"),
        ({"bottleneck": "conv1x1"}, "missing in it: bottleneck."),
        ({"bottleneck": "conv5x5_bn"}, "missing in it: bottleneck."),
        ({"act": "relu"}, "9 not of this network: encode1.prelu.weight"),
        ({"se": None}, "16 not of this network: encode1.SELayer.conv.weight"),
        ({"se": "scse"}, "missing in it: encode1.SELayer.channel"),
        ({"positions": "P1"}, "8 not of this network: decode1.SELayer.conv.weight"),
        ({"positions": "P6"}, "4 missing in it: bottleneck.SELayer.conv.weight"),
        ({"depth": 3}, "not of this network: encode4"),
        ({"norm": "instance"}, "not of this network: encode1.batchnorm1"),
    ],
)
def test_a_network_of_another_build_is_refused_and_keeps_its_weights(options, problem):
    refused(ours(True, **options), trained(True).state_dict(), problem, "build the SCSEFCDenseNet")


def test_a_network_of_three_dimensions_is_refused():
    network = SCSEFCDenseNet(3, 1, CLASSES, features=FILTERS, se=None, bottleneck="dense", act="prelu")
    refused(network, trained(False).state_dict(), "of another shape")


def test_raw_skip_connections_would_give_other_outputs_and_are_refused():
    refused(ours(True, skip="raw"), trained(True).state_dict(), 'skip="recalibrated"', kind=ConfigError)


def test_one_entry_too_few_too_many_or_of_another_shape_is_named():
    state = trained(False).state_dict()
    without = {key: value for key, value in state.items() if key != "decode4.conv2.bias"}
    refused(ours(False), without, "1 missing in it: decode4.conv2.bias")
    refused(ours(False), {**state, "extra": torch.zeros(1)}, "1 not of this network: extra")
    refused(ours(False), {**state, "classifier.conv.bias": torch.zeros(9)}, "classifier.conv.bias (9,), expected (5,)")
    refused(ours(False), {**state, 3: torch.zeros(1)}, "expected a state dict of tensors")


class Harm:
    """A pickle of it would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path):
    path, mark = tmp_path / "harm.pth.tar", tmp_path / "mark"
    torch.save({"state_dict": trained(False).state_dict(), "harm": Harm(mark)}, path)
    refused(ours(False), path, "harm.pth.tar", "no part of such a network", "fix")
    assert not mark.exists()


def test_a_file_that_is_missing_damaged_or_something_else_is_refused(tmp_path):
    refused(ours(False), tmp_path / "no.pth.tar", "no.pth.tar", "there is no such file")
    whole, cut = tmp_path / "whole.pth.tar", tmp_path / "cut.pth.tar"
    torch.save({"state_dict": trained(False).state_dict()}, whole)
    cut.write_bytes(whole.read_bytes()[:9000])
    refused(ours(False), cut, "cut.pth.tar", "it cannot be read as a network")
    for number, content in enumerate(([1, 2], {"epoch": 3}, {})):
        path = tmp_path / f"{number}.pth.tar"
        torch.save(content, path)
        refused(ours(False), path, f"{number}.pth.tar", "expected a state dict of tensors, found")
