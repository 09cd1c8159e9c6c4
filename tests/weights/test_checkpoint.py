# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch

from monai_attn.errors import DataError
from monai_attn.nets import SCSEUNet
from monai_attn.weights.checkpoint import load_weights, read_state_dict, unwrapped


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
    with pytest.raises(DataError) as caught:
        load_weights(target, tmp_path / "model.pt")
    assert caught.value.what == str(tmp_path / "model.pt")
    assert expected in caught.value.problem
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_weights_of_a_training_that_diverged_are_refused():
    state = network().state_dict()
    for value in (float("nan"), float("inf")):
        state["classifier.bias"][1] = value
        with pytest.raises(DataError, match=r"1 entries are NaN or infinite: classifier\.bias") as caught:
            load_weights(network(), state, origin="checkpoint_latest.pt")
        assert caught.value.what == "checkpoint_latest.pt"


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, {"model": {"epoch": 3}}, {3: torch.zeros(1)}, [1]])
def test_what_holds_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(DataError, match="expected a state dict of tensors, found"):
        read_state_dict(tmp_path / "model.pt")
