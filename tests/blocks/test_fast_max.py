# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import pickle
import weakref
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from monai_attn.blocks import ChannelSpatialSE, fast_max, scse_kernels
from monai_attn.visualize import capture_attention

FUSED = pytest.param(
    "fused", marks=pytest.mark.skipif(not scse_kernels.has_kernels(), reason="no C compiler was there")
)
PATHS = [FUSED, "portable"]
SIZES = {1: (11,), 2: (7, 6), 3: (5, 3, 4)}


class Definition(nn.Module):
    """The block by eqs. 2 to 4, with the same gates."""

    def __init__(self, block: ChannelSpatialSE) -> None:
        super().__init__()
        self.block = block

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return fast_max.larger_product(u, self.block.channel.excitation(u), self.block.spatial.excitation(u))


@pytest.fixture(autouse=True)
def _always(monkeypatch):
    monkeypatch.setattr(fast_max, "_LEAST", {True: 0, False: 0})
    monkeypatch.setattr(fast_max, "_PIECE", 32)  # many pieces


@pytest.fixture
def path(request, monkeypatch):
    """Take one path, and see to it that it is taken."""
    name, calls = request.param, []
    if name == "portable":
        monkeypatch.setattr(scse_kernels, "has_kernels", lambda: False)
    target, attribute = (fast_max._Excite, "forward") if name == "fused" else (fast_max._Max, "forward")
    original = getattr(target, attribute)
    monkeypatch.setattr(target, attribute, staticmethod(lambda *args: calls.append(1) or original(*args)))
    yield name
    assert calls, f"the {name} path was not taken"


both_paths = pytest.mark.parametrize("path", PATHS, indirect=True)


def results(net: nn.Module, u: torch.Tensor, grad_output: torch.Tensor) -> list[torch.Tensor | None]:
    """Output and all gradients."""
    for parameter in net.parameters():
        parameter.grad = None
    u = u.detach().requires_grad_(u.requires_grad)
    output = net(u)
    output.backward(grad_output)
    return [output.detach(), u.grad, *(parameter.grad for parameter in net.parameters())]


def assert_equal(found: list[torch.Tensor | None], expected: list[torch.Tensor | None]) -> None:
    assert [x is None for x in found] == [x is None for x in expected]
    for one, other in zip(found, expected):
        if other is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def layouts(u: torch.Tensor) -> dict[str, torch.Tensor]:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(u.ndim, torch.contiguous_format)
    return {
        "contiguous": u,
        "channels last": u.contiguous(memory_format=last),
        "transposed": u.movedim(-1, 0).contiguous().movedim(0, -1),
        "strided": torch.stack([u, -u], dim=-1)[..., 0],
        "expanded": u[:1].expand(u.shape),
    }


@both_paths
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_output_and_gradients_equal_those_of_the_definition(path, dims, bias):
    block = ChannelSpatialSE(dims, 6, bias=bias)
    u = torch.randn(3, 6, *SIZES[dims], requires_grad=True)
    u.data[torch.rand_like(u) < 0.3] = 0  # where both products are equal
    grad_output = torch.randn_like(u)
    assert_equal(results(block, u, grad_output), results(Definition(block), u, grad_output))


@given(
    name=st.sampled_from(["contiguous", "channels last", "transposed", "strided", "expanded"]),
    of_gradient=st.sampled_from(["contiguous", "channels last", "transposed", "strided", "expanded"]),
    batch=st.integers(0, 3),
    channels=st.integers(2, 9),
    size=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_any_shape_and_layout_gives_what_the_definition_gives(name, of_gradient, batch, channels, size, dtype):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_max, "_LEAST", {True: 0, False: 0})
        block = ChannelSpatialSE(len(size), channels).to(dtype)
        u = layouts(torch.randn(batch, channels, *size, dtype=dtype))[name].requires_grad_()
        grad_output = layouts(torch.randn(batch, channels, *size, dtype=dtype))[of_gradient]
        assert_equal(results(block, u, grad_output), results(Definition(block), u, grad_output))


@both_paths
@pytest.mark.parametrize("wanted", list(product([True, False], repeat=3))[:-1])
def test_frozen_parts_get_no_gradient_and_the_others_theirs(path, wanted):
    block = ChannelSpatialSE(2, 4)
    of_input, of_channel, of_spatial = wanted
    block.channel.requires_grad_(of_channel)
    block.spatial.requires_grad_(of_spatial)
    u = torch.randn(2, 4, 5, 6, requires_grad=of_input)
    grad_output = torch.randn_like(u)
    assert_equal(results(block, u, grad_output), results(Definition(block), u, grad_output))


@both_paths
def test_second_derivatives_beside_first_ones_equal_those_of_the_definition(path):
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6, requires_grad=True)
    found = []
    for net in (block, Definition(block)):
        block.zero_grad()
        u.grad = None
        output = net(u)
        (slope,) = torch.autograd.grad(output.square().sum(), u, create_graph=True)
        (slope.square().sum() + output.sin().sum()).backward()
        found.append([u.grad, *(parameter.grad for parameter in block.parameters())])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


@both_paths
def test_a_jacobian_of_all_outputs_at_once_equals_that_of_the_definition(path):
    block, u = ChannelSpatialSE(2, 4), torch.randn(1, 4, 2, 3)
    found, expected = (torch.autograd.functional.jacobian(net, u, vectorize=True) for net in (block, Definition(block)))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_portable_derivatives_are_right_in_float64():
    u = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    maps = [torch.rand(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 1, 1), (2, 1, 4, 2))]
    assert torch.autograd.gradcheck(fast_max.fast_max, (u, *maps))
    assert torch.autograd.gradgradcheck(fast_max.fast_max, (u, *maps))


@both_paths
def test_a_graph_can_be_gone_through_twice_and_nothing_that_others_see_is_changed(path):
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6, requires_grad=True)
    grad_output, seen = torch.randn_like(u), []
    before = u.detach().clone(), grad_output.clone()
    u.register_hook(lambda gradient: seen.append((gradient, gradient.clone())))
    output = block(u)
    first, second = (torch.autograd.grad(output, u, grad_output, retain_graph=True)[0] for _ in range(2))
    torch.autograd.grad(output, block.spatial.conv.weight, grad_output)
    assert torch.equal(first, second)
    assert all(torch.equal(now, then) for now, then in [(u, before[0]), (grad_output, before[1]), *seen])


@both_paths
def test_features_that_were_changed_meanwhile_are_an_error(path):
    u = torch.randn(2, 4, 5, 6, requires_grad=True)
    features = u * 1
    output = ChannelSpatialSE(2, 4)(features)
    features.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@both_paths
def test_maps_are_captured_and_send_gradients_back(path):
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6, requires_grad=True)
    maps: dict[str, torch.Tensor] = {}
    for name in ("channel", "spatial"):
        gate = getattr(block, name).gate
        gate.register_forward_hook(lambda _module, _inputs, output, name=name: maps.update({name: output}))
    found = []
    for net in (block, Definition(block)):
        output = net(u)
        losses = [
            maps["channel"].sum(),
            maps["spatial"].sum(),
            output.sum() + sum(x.square().sum() for x in maps.values()),
        ]
        for loss in losses:
            found.append(torch.autograd.grad(loss, [u, *block.parameters()], retain_graph=True, allow_unused=True))
    for ours, theirs in zip(found[:3], found[3:]):
        for one, other in zip(ours, theirs):
            one, other = (torch.zeros(()) if x is None else x for x in (one, other))
            torch.testing.assert_close(one + 0 * other, other + 0 * one, atol=1e-5, rtol=1e-5)
    with capture_attention(block) as captured:
        block(u)
    assert list(captured) == ["channel.gate", "spatial.gate"]


@pytest.mark.parametrize("name", ["channel", "spatial"])
def test_a_hook_may_put_another_map_in_place(name):
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6, requires_grad=True)
    for other in (lambda x: x * 0.5, lambda x: x.new_ones(()), lambda x: x.double(), lambda x: x.expand(2, 4, 5, 6)):
        handle = getattr(block, name).gate.register_forward_hook(lambda *args, other=other: other(args[-1]))
        grad_output = torch.randn_like(u, dtype=block(u).dtype)
        assert_equal(results(block, u, grad_output), results(Definition(block), u, grad_output))
        handle.remove()


@both_paths
def test_metadata_of_an_image_stay_with_the_features(path):
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6)
    output = block(MetaTensor(u, meta={"name": "case 7"}).requires_grad_())
    assert isinstance(output, MetaTensor)
    assert output.meta["name"] == "case 7"
    grad_output = torch.randn_like(u)
    found = results(block, MetaTensor(u).requires_grad_(), grad_output)
    assert_equal(
        [None if x is None else x.as_subclass(torch.Tensor) for x in found],
        results(Definition(block), u.requires_grad_(), grad_output),
    )


@both_paths
def test_recomputation_gives_the_same_gradients(path):
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6, requires_grad=True)
    grad_output = torch.randn_like(u)
    recomputed = nn.Sequential(block)
    recomputed.forward = lambda x: checkpoint(block, x, use_reentrant=False)
    assert_equal(results(recomputed, u, grad_output), results(Definition(block), u, grad_output))


@both_paths
def test_little_more_than_the_features_is_kept_and_nothing_outlives_the_graph(path):
    block = ChannelSpatialSE(2, 64)
    u = torch.randn(2, 64, 16, 16, requires_grad=True)
    kept: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        block(u)
    assert sum(kept.values()) < 1.3 * u.nbytes
    features = u * 1
    output = block(features)
    output.sum().backward()
    gone = weakref.ref(features)
    del features, output
    assert gone() is None


@both_paths
def test_a_copied_and_a_pickled_block_compute_the_same(path):
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(u), block(u))
        assert list(other.state_dict()) == list(block.state_dict())


# --- where the fast forms keep out -------------------------------------------------------------------------------


@pytest.fixture
def _no_kernel_may_run(monkeypatch):
    def fail(*_args: object) -> None:
        raise AssertionError("a compiled pass was called")

    monkeypatch.setattr(scse_kernels, "_run", fail)


@pytest.mark.usefixtures("_no_kernel_may_run")
@pytest.mark.parametrize(
    "change",
    [
        lambda block, u: (block.double(), u.double()),
        lambda block, u: (block.bfloat16(), u.bfloat16()),
        lambda block, u: (block, u.to(memory_format=torch.channels_last)),
        lambda block, u: (block, u[:0]),
        lambda block, u: (parametrizations.weight_norm(block.spatial.conv) and block, u),
        lambda block, u: (nn.utils.weight_norm(block.spatial.conv) and block, u),
        lambda block, u: (block.spatial.conv.register_forward_hook(lambda *args: args[-1] * 2) and block, u),
        lambda block, u: (block.to("meta"), u.to("meta")),
    ],
    ids=["float64", "bfloat16", "channels last", "empty", "parametrized", "weight norm", "hook", "meta"],
)
def test_what_the_kernels_do_not_take_is_computed_without_them(change):
    block, u = change(ChannelSpatialSE(2, 4), torch.randn(2, 4, 5, 6))
    expected = Definition(block)(u)
    found = block(u)
    assert found.shape == expected.shape
    if u.device.type == "cpu":
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


@pytest.mark.usefixtures("_no_kernel_may_run")
def test_autocast_is_respected():
    block, u = ChannelSpatialSE(2, 4), torch.randn(2, 4, 5, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(block(u), Definition(block)(u), atol=0, rtol=0)


@pytest.mark.usefixtures("_no_kernel_may_run")
def test_transforms_and_modes_see_every_operation():
    block, u = ChannelSpatialSE(2, 4), torch.randn(3, 4, 5, 6)
    parameters = dict(block.named_parameters())

    def loss(parameters: dict[str, torch.Tensor], net: nn.Module, x: torch.Tensor) -> torch.Tensor:
        prefix = "" if net is block else "block."
        return functional_call(net, {prefix + k: v for k, v in parameters.items()}, (x[None],)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, None, 0))
    definition = Definition(block)
    for name, found in per_sample(parameters, block, u).items():
        torch.testing.assert_close(found, per_sample(parameters, definition, u)[name], atol=1e-5, rtol=1e-5)
    with forward_ad.dual_level():
        tangents = [forward_ad.unpack_dual(net(forward_ad.make_dual(u, u))).tangent for net in (block, definition)]
    torch.testing.assert_close(*tangents, atol=1e-6, rtol=1e-6)
    with FlopCounterMode(display=False) as counter:
        block(u)
    assert counter.get_total_flops() > 0


@pytest.mark.usefixtures("_no_kernel_may_run")
def test_script_trace_export_and_compile_take_the_definition():
    block, u = ChannelSpatialSE(2, 4).eval(), torch.randn(2, 4, 5, 6)
    expected = Definition(block)(u)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(block, (u,)).module()
    for program in (torch.jit.script(block), torch.jit.trace(block, u, check_trace=False), exported, compiled):
        torch.testing.assert_close(program(u), expected, atol=1e-6, rtol=0)


def test_channels_that_do_not_fit_are_an_error_and_not_read_beyond_their_end():
    with pytest.raises(RuntimeError):
        ChannelSpatialSE(2, 8)(torch.randn(2, 4, 5, 6))


def test_small_features_are_not_worth_the_detour(monkeypatch):
    monkeypatch.undo()
    assert not fast_max.pays_off(torch.randn(1, 4, 8, 8))
    assert fast_max.pays_off(torch.empty(1, 64, 64, 64))
    with torch.no_grad():
        assert not fast_max.pays_off(torch.empty(1, 64, 64, 64))
        assert fast_max.pays_off(torch.empty(4, 64, 64, 64))
