# SPDX-License-Identifier: Apache-2.0
import copy
import logging
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from monai_attn.errors import DataError
from monai_attn.nets import SCSEUNet
from monai_attn.weights import load_pretrained, load_weights
from monai_attn.weights.checkpoint import read_state_dict, read_tensors, unwrapped

from ..conftest import refused as refuse

STATE = {"conv.weight": torch.arange(15.0).reshape(3, 5), "bn.running_mean": torch.rand(4)}


@pytest.fixture
def saved(tmp_path) -> Path:
    torch.save(STATE, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def refused(path: Path, *expected: str, read=read_tensors) -> None:
    with pytest.raises(DataError) as caught:
        read(path)
    for text in expected:
        assert text in str(caught.value)
    assert caught.value.what == str(path)
    assert "weights_only=False" not in f"{caught.value}{caught.value.__cause__}"


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_is_read(tmp_path, zipped):
    torch.save({"model": STATE, "epoch": 3}, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "model.pt")
    assert found["epoch"] == 3
    assert all(torch.equal(found["model"][key], value) for key, value in STATE.items())


def test_a_missing_and_a_foreign_file_are_told_apart(tmp_path):
    refused(tmp_path / "no.pt", "there is no such file", "get the published weights")
    refused(tmp_path, "there is no such file")
    (tmp_path / "model.pt").write_text("<html>log in first</html>")
    refused(tmp_path / "model.pt", "it is no file of plain tensors")


def test_a_file_that_was_cut_off_anywhere_is_refused(saved):
    whole = saved.read_bytes()
    for length in range(1, len(whole), 97):
        saved.write_bytes(whole[:length])
        refused(saved)


def test_no_flipped_byte_changes_a_tensor_unnoticed(saved):
    whole, noticed = saved.read_bytes(), 0
    for place in range(0, len(whole), 19):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        saved.write_bytes(damaged)
        try:
            found = read_tensors(saved)
        except DataError:
            noticed += 1
        else:  # a byte without a meaning, such as a date
            assert found.keys() == STATE.keys()
            assert all(torch.equal(found[key], value) for key, value in STATE.items())
    assert noticed > 20


def test_the_damaged_tensor_is_named(saved):
    damaged = bytearray(saved.read_bytes())
    damaged[damaged.index(STATE["bn.running_mean"].numpy().tobytes())] ^= 1
    saved.write_bytes(damaged)
    refused(saved, "it is damaged: model/data/1 is not what was written", "download it again")


def test_an_entry_that_is_marked_as_a_folder_is_refused(saved):
    """PyTorch would return what happens to be in memory, and checksums do not cover the mark."""
    damaged = bytearray(saved.read_bytes())
    damaged[damaged.rindex(b"model/data/0") - 46 + 38] ^= 0x10  # within the entry's line in the table of contents
    saved.write_bytes(damaged)
    refused(saved, "it is damaged: model/data/0")


class Harm:
    """A pickle of it would write a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_does_not_run(tmp_path, kind):
    path, mark = tmp_path / "harm.pt", tmp_path / "mark"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Harm(mark), protocol=2))
    else:
        torch.save({"model": STATE, "harm": Harm(mark)}, path, _use_new_zipfile_serialization=kind == "zip")
    refused(path, "io.open", "could run code", "state_dict")
    assert not mark.exists()
    torch.load(path, weights_only=False, pickle_module=pickle) if kind != "pickle" else pickle.loads(path.read_bytes())
    assert mark.exists()  # the file is harmful indeed


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])  # before NumPy 2 and since
def test_numbers_of_numpy_are_read(tmp_path, module):
    """A schedule with ``np.cos`` makes them, and many published checkpoints hold a best score as one."""
    numbers = {"float": np.float64(0.5), "half": np.float16(2), "int": np.int64(3), "bool": np.bool_(True)}
    torch.save({"model": STATE, **numbers}, path := tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    path.write_bytes(re.sub(rb"numpy\._?core\.multiarray", module, path.read_bytes()))
    found = read_tensors(path)
    assert {name: found[name] for name in numbers} == numbers


def test_a_whole_network_is_refused_with_its_class(tmp_path):
    for protocol in (2, 4):
        torch.save(torch.nn.Sequential(torch.nn.Linear(1, 1)), tmp_path / "network.pt", pickle_protocol=protocol)
        refused(tmp_path / "network.pt", "torch.load(weights_only=True)", "Sequential" if protocol == 2 else "")


def test_an_exported_network_is_no_state_dict(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(1, 2, 3)), tmp_path / "model.ts")
    refused(tmp_path / "model.ts", "--network_def")


def network(classes: int = 3, features: int = 4) -> SCSEUNet:
    return SCSEUNet(2, 1, classes, features=features, depth=1, norm="batch")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "trainer": {"epoch": 3}},
        lambda state: {"model": {"state_dict": {f"module.{key}": value for key, value in state.items()}}},
    ],
)
def test_weights_are_found_however_they_are_wrapped(tmp_path, wrap):
    state = network().state_dict()
    torch.save(wrap(state), tmp_path / "model.pt")
    for source in (tmp_path / "model.pt", wrap(state)):
        loaded = network()
        load_weights(loaded, source)
        assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_a_wrapped_network_takes_plain_weights():
    plain, parallel = network(), torch.nn.DataParallel(network())
    load_weights(parallel, plain.state_dict())
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in parallel.module.state_dict().items())
    assert unwrapped(parallel) is parallel.module
    assert unwrapped(plain) is plain


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ({"classes": 5}, "2 of another shape: classifier.weight (3, 4, 1, 1), expected (5, 4, 1, 1)"),
        ({"features": 6}, "of another shape: encoders.0."),
    ],
)
def test_another_number_of_classes_or_width_is_refused_with_the_key_and_both_numbers(tmp_path, other, expected):
    torch.save(network().state_dict(), tmp_path / "model.pt")
    target = network(**other)
    before = copy.deepcopy(target.state_dict())
    path = tmp_path / "model.pt"
    assert expected in refuse(path, load_weights, target, path).problem
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_pretrained_weights_are_taken_where_they_fit_and_the_others_named(tmp_path, caplog):
    theirs, ours = network(), network(classes=5)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    before = copy.deepcopy(ours.state_dict())
    with caplog.at_level(logging.INFO, "monai_attn"):
        load_pretrained(ours, tmp_path / "model.pt")
        load_pretrained(network(), tmp_path / "model.pt")
    for key, value in ours.state_dict().items():
        assert torch.equal(value, (before if key.startswith("classifier") else theirs.state_dict())[key])
    total = sum(not key.endswith("num_batches_tracked") for key in before)
    assert f"{total - 2} of {total} tensors fit, " in caplog.text
    assert f"{total} of {total} tensors fit, 100.0% of the weights\n" in caplog.text
    assert "classifier.weight (3, 4, 1, 1), expected (5, 4, 1, 1), classifier.bias (3,), expected (5,)" in caplog.text


def test_pretrained_weights_of_which_less_than_half_fits_are_refused(tmp_path):
    path, wide = tmp_path / "model.pt", network(features=6)
    torch.save({**network().state_dict(), "classifier.bias": torch.full((3,), 7.0)}, path)
    error = refuse(path, load_pretrained, wide, path)
    assert " tensors fit, " in error.problem
    assert "--pretrained_partial True" in error.fix
    assert not wide.classifier.bias.eq(7).any()
    load_pretrained(wide, path, least=0)
    assert wide.classifier.bias.eq(7).all()
    torch.save(STATE, path)
    assert refuse(path, load_pretrained, wide, path, least=0).problem.startswith("0 of ")


def test_weights_of_a_training_that_diverged_are_refused():
    state = network().state_dict()
    for value in (float("nan"), float("inf")):
        state["classifier.bias"][1] = value
        error = refuse("checkpoint_latest.pt", load_weights, network(), state, origin="checkpoint_latest.pt")
        assert "1 entries are NaN or infinite: classifier.bias" in error.problem


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, {"model": {"epoch": 3}}, {3: torch.zeros(1)}, [1]])
def test_what_holds_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(DataError, match="expected a state dict of tensors, found"):
        read_state_dict(tmp_path / "model.pt")
