# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from monai_attn.errors import DataError
from monai_attn.nets import AFNet
from monai_attn.weights import load_autofocus_weights

CHANNELS = (4, 4, 6, 6, 6, 6, 8, 8)
DILATIONS = (2, 6, 10, 14)
SIDE = 31
# which layers of the three blocks are autofocus layers in Basic and AFN-1 to AFN-6
AUTOFOCUS = [
    [(False, False), (False, False), (False, False)],
    [(False, False), (False, False), (False, True)],
    [(False, False), (False, False), (True, True)],
    [(False, False), (False, True), (True, True)],
    [(False, False), (True, True), (True, True)],
    [(False, True), (True, True), (True, True)],
    [(True, True), (True, True), (True, True)],
]


def checkpoint(n: int, in_channels: int = 2, classes: int = 3) -> dict[str, torch.Tensor]:
    """A state dict with the names and shapes of the authors' code, biases in front of normalisation included."""
    state: dict[str, torch.Tensor] = {}

    def conv(name: str, inputs: int, outputs: int, side: int = 3) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side, side) * (2 / (inputs * side**3)) ** 0.5
        state[f"{name}.bias"] = torch.randn(outputs)

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = torch.rand(channels) + 0.5
        state[f"{name}.bias"] = torch.rand(channels) - 0.2
        state[f"{name}.running_mean"] = torch.randn(channels)
        state[f"{name}.running_var"] = torch.rand(channels) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    widths = (in_channels, *CHANNELS)
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
    conv("fc", widths[-1], classes, side=1)
    return state


def predict(state: dict[str, torch.Tensor], x: torch.Tensor, training: bool) -> torch.Tensor:
    """The authors' graph by its equations: unpadded trunk, autofocus layers with 0, 4, 8 and 12 zeros."""

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
        scores = conv(conv(u, f"{attention}1").relu(), f"{attention}2")
        weights = inside(scores.softmax(1), 1)
        total = 0
        for k, dilation in enumerate(DILATIONS):
            bias = state[f"{prefix}.conv{number}.bias"] if k == 0 else None
            kernel = state[f"{prefix}.conv{number}.weight"]
            features = F.conv3d(u, kernel, bias, dilation=dilation, padding=dilation - 2)
            total = total + weights[:, k : k + 1] * norm(features, f"{prefix}.bn_list{number}.{k}")
        return total

    for number in (1, 2):
        x = norm(conv(x, f"conv{number}"), f"bn{number}").relu()
    basic = "layer3.conv1.weight" in state
    for block in range(3):
        prefix = f"layer{3 + block}" if basic else f"layers.{block}"
        kinds = [f"{prefix}.bn{number}.weight" not in state for number in (1, 2)]
        hidden = layer(x, prefix, 1, kinds[0], single=False).relu()
        output = layer(hidden, prefix, 2, kinds[1], single=not kinds[0])
        residual = inside(x, 4)
        if f"{prefix}.downsample.0.weight" in state:
            residual = norm(conv(residual, f"{prefix}.downsample.0"), f"{prefix}.downsample.1")
        x = (output + residual).relu()
    return conv(x, "fc")


def network(n: int, **options: Any) -> AFNet:
    return AFNet(3, 2, 3, **{"n_autofocus": n, "channels": CHANNELS, "padding": "official", **options})


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("n", range(7))
def test_a_loaded_network_gives_the_outputs_of_the_authors_graph(n, training):
    state = {key: value.double() for key, value in checkpoint(n).items()}
    net = network(n).double()
    load_autofocus_weights(net, state)
    x = torch.randn(2, 2, SIDE, SIDE, SIDE - 1, dtype=torch.float64)
    expected = predict(copy.deepcopy(state), x, training)
    output = net.train(training)(x)
    assert expected.std() > 1e-2
    torch.testing.assert_close(output, expected, atol=1e-9, rtol=1e-9)


def test_in_float32_the_outputs_are_equal_to_1e_5():
    state = checkpoint(2)
    net = network(2).eval()
    load_autofocus_weights(net, state)
    x = torch.randn(1, 2, SIDE, SIDE, SIDE)
    expected = predict(state, x, training=False)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(net(x), expected, atol=1e-5, rtol=1e-5)


def test_a_file_of_the_authors_loads_from_its_path_with_wrapper_prefix_and_other_entries(tmp_path):
    state = checkpoint(1)
    path = tmp_path / "AFN1.pth.tar"
    wrapped = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 400, "state_dict": wrapped, "arch": "AFN1"}, path)
    from_file, from_memory = network(1), network(1)
    for source in (path, str(path)):
        load_autofocus_weights(from_file, source)
    load_autofocus_weights(from_memory, state)
    for mine, other in zip(from_file.state_dict().values(), from_memory.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
    assert from_file.state_dict()["trunk.stem.0.adn.N.num_batches_tracked"] == 7


def test_files_from_before_pytorch_counted_batches_load():
    state = {key: value for key, value in checkpoint(6).items() if not key.endswith("num_batches_tracked")}
    net = network(6)
    load_autofocus_weights(net, state)
    assert net.state_dict()["trunk.blocks.2.second.norms.3.num_batches_tracked"] == 0


def test_the_given_state_dict_stays_as_it_was():
    state = checkpoint(1)
    before = copy.deepcopy(state)
    load_autofocus_weights(network(1), state)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[key], before[key]) for key in before)


def refused(net: AFNet, source: Any, *expected: str) -> DataError:
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(DataError) as caught:
        load_autofocus_weights(net, source)
    for text in expected:
        assert text in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    return caught.value


@pytest.mark.parametrize(("n", "other"), [(1, 2), (0, 1), (1, 0), (6, 5)])
def test_a_network_of_other_layers_is_refused_and_keeps_its_weights(n, other):
    refused(network(n), checkpoint(other), "missing in it", "not of this network", "build the AFNet")


def test_one_entry_too_few_too_many_or_of_another_shape_is_named():
    state = checkpoint(1)
    without = {key: value for key, value in state.items() if key != "layers.0.bn1.weight"}
    refused(network(1), without, "1 missing in it: layers.0.bn1.weight")
    refused(network(1), {**state, "extra": torch.zeros(1)}, "1 not of this network: extra")
    refused(network(1), {**state, "fc.bias": torch.zeros(9)}, "1 of another shape: fc.bias (9,), expected (3,)")
    refused(network(1), {**state, "conv1.bias": torch.zeros(9)}, "1 not of this network: conv1.bias")


@pytest.mark.parametrize("options", [{"norm": "instance"}, {"share_weights": False}, {"channels": (4, 4, 6, 6)}])
def test_a_network_of_another_build_is_refused(options):
    refused(network(1, **options), checkpoint(1), "the given checkpoint")


def test_a_network_of_two_dimensions_is_refused():
    refused(AFNet(2, 2, 3, n_autofocus=1, channels=CHANNELS), checkpoint(1), "of another shape")


class Harm:
    """A pickle of it would write a file when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_file_with_code_is_refused_and_the_code_does_not_run(tmp_path):
    path, mark = tmp_path / "harm.pth", tmp_path / "mark"
    torch.save({"state_dict": checkpoint(1), "harm": Harm(str(mark))}, path)
    error = refused(network(1), path, "harm.pth", "weights_only=True", "fix")
    assert error.what == str(path)
    path.write_bytes(pickle.dumps(Harm(str(mark)), protocol=2))
    refused(network(1), path, "harm.pth", "weights_only=True")
    assert not mark.exists()


def test_a_file_that_is_missing_damaged_or_something_else_is_refused(tmp_path):
    refused(network(1), tmp_path / "no.pth", "no.pth", "there is no such file")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(b"not a checkpoint")
    refused(network(1), damaged, "damaged.pth", "it is no file of plain tensors")
    for number, content in enumerate(([1, 2], {"epoch": 3}, {}, torch.zeros(3))):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        refused(network(1), path, f"{number}.pth", "expected a state dict of tensors, found")
