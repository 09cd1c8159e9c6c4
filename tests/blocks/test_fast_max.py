# SPDX-License-Identifier: Apache-2.0
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.utils.checkpoint import checkpoint

from monai_attn.blocks import ChannelSpatialSE, fast_max

LAYOUTS = {
    "contiguous": lambda u: u,
    "channels last": lambda u: u.contiguous(
        memory_format={4: torch.channels_last, 5: torch.channels_last_3d}.get(u.ndim, torch.contiguous_format)
    ),
    "transposed": lambda u: u.movedim(-1, 0).contiguous().movedim(0, -1),
    "strided": lambda u: torch.stack([u, -u], dim=-1)[..., 0],
    "expanded": lambda u: u[:1].expand(u.shape),
}


def definition(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
    return torch.maximum(u * channel, u * spatial)


class Definition(nn.Module):
    """The block by eqs. 1 to 4, with the same gates."""

    def __init__(self, block: ChannelSpatialSE) -> None:
        super().__init__()
        self.block = block

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        return definition(u, self.block.channel(u), self.block.spatial(u))


@pytest.fixture(autouse=True)
def fast_passes(monkeypatch):
    """Take the short way for features of any size, in many pieces; the list of how often it was taken."""
    calls: list[int] = []
    forward = fast_max._LargerProduct.forward
    monkeypatch.setattr(fast_max, "_LEAST", 1)
    monkeypatch.setattr(fast_max, "_PIECE", 32)
    monkeypatch.setattr(
        fast_max._LargerProduct, "forward", staticmethod(lambda *tensors: calls.append(1) or forward(*tensors))
    )
    return calls


def results(net: nn.Module, u: torch.Tensor, grad_output: torch.Tensor) -> list[torch.Tensor | None]:
    """Output and all gradients."""
    net.zero_grad()
    u = u.detach().requires_grad_(u.requires_grad)
    output = net(u)
    output.backward(grad_output)
    return [output.detach(), u.grad, *(parameter.grad for parameter in net.parameters())]


def assert_close(
    found: list[torch.Tensor | None], expected: list[torch.Tensor | None], tolerance: float = 1e-5
) -> None:
    assert [x is None for x in found] == [x is None for x in expected]
    for one, other in zip(found, expected):
        if other is not None:
            torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("size", [(11,), (7, 6), (5, 3, 4)])
def test_the_output_and_its_gradient_are_bitwise_those_of_the_definition(size, fast_passes):
    u, weight = torch.randn(2, 3, 6, *size)
    u[torch.rand_like(u) < 0.3] = 0  # where both products are equal
    channel, spatial = torch.rand(3, 6, *[1] * len(size)), torch.rand(3, 1, *size)
    channel[0, 0], spatial[0] = 0.5, 0.5  # and where the maps are
    differ = u * channel != u * spatial
    found, expected = [], []
    for function, into in ((fast_max.larger_product, found), (definition, expected)):
        inputs = [x.clone().requires_grad_() for x in (u, channel, spatial)]
        into += [function(*inputs), *torch.autograd.grad((weight * function(*inputs)).sum(), inputs)]
    assert len(fast_passes) == 2
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1][differ], expected[1][differ])
    assert_close(found[1:], expected[1:])


@given(
    layouts=st.tuples(st.sampled_from(list(LAYOUTS)), st.sampled_from(list(LAYOUTS))),
    batch=st.integers(1, 3),
    channels=st.integers(2, 9),
    size=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_any_shape_and_layout_gives_what_the_definition_gives(layouts, batch, channels, size, dtype):
    block = ChannelSpatialSE(len(size), channels).to(dtype)
    u, grad_output = (LAYOUTS[name](torch.randn(batch, channels, *size, dtype=dtype)) for name in layouts)
    u.requires_grad_()
    assert_close(results(block, u, grad_output), results(Definition(block), u, grad_output))


@pytest.mark.parametrize("wanted", [(False, True, True), (True, False, False), (False, False, True)])
def test_frozen_parts_get_no_gradient_and_the_others_theirs(wanted, fast_passes):
    block = ChannelSpatialSE(2, 4)
    of_input, of_channel, of_spatial = wanted
    block.channel.requires_grad_(of_channel)
    block.spatial.requires_grad_(of_spatial)
    u = torch.randn(2, 4, 5, 6, requires_grad=of_input)
    grad_output = torch.randn_like(u)
    assert_close(results(block, u, grad_output), results(Definition(block), u, grad_output))
    assert fast_passes


def test_first_and_second_derivatives_in_both_modes_and_in_batches_are_right():
    u = torch.randn(2, 3, 4, 2, dtype=torch.float64, requires_grad=True)
    maps = [torch.rand(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 1, 1), (2, 1, 4, 2))]
    inputs = (u, *maps)
    assert torch.autograd.gradcheck(fast_max.larger_product, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(fast_max.larger_product, inputs, check_batched_grad=True)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_transforms_of_torch_func_give_what_they_give_of_the_definition(argument):
    shapes = (2, 3, 2, 3), (2, 3, 1, 1), (2, 1, 2, 3)
    inputs = [torch.rand(shape, dtype=torch.float64) - 0.5 * (shape == shapes[0]) for shape in shapes]
    in_dims = tuple(1 if index == argument else None for index in range(3))
    many = [torch.stack([x, 2 * x], 1) if dim else x for x, dim in zip(inputs, in_dims)]

    def all_of(function) -> list[torch.Tensor]:
        def loss(*inputs: torch.Tensor) -> torch.Tensor:
            return function(*inputs).sin().sum()

        def mapped(*inputs: torch.Tensor) -> torch.Tensor:
            return vmap(function, in_dims)(*inputs).sin().sum()

        found = [transform(function, argument)(*inputs) for transform in (jacrev, jacfwd)]
        found += [hessian(loss, argument)(*inputs), vmap(function, in_dims)(*many)]
        return found + [
            f(*many) for wanted in range(3) for f in (vmap(grad(loss, wanted), in_dims), grad(mapped, wanted))
        ]

    assert_close(all_of(fast_max.larger_product), all_of(definition), 1e-12)


def test_a_graph_can_be_gone_through_twice_and_nothing_that_others_see_is_changed(fast_passes):
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6, requires_grad=True)
    grad_output = torch.randn_like(u)
    before = u.detach().clone(), grad_output.clone()
    output = block(u)
    first, second = (torch.autograd.grad(output, u, grad_output, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(now, then) for now, then in zip((u, grad_output), before))
    assert len(fast_passes) == 1


def test_features_that_were_changed_meanwhile_are_an_error():
    features = torch.randn(2, 4, 5, 6, requires_grad=True) * 1
    output = ChannelSpatialSE(2, 4)(features)
    features.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("name", ["channel", "spatial"])
def test_a_hook_may_put_another_map_in_place(name):
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6, requires_grad=True)
    for other in (lambda x: x * 0.5, lambda x: x.new_ones(()), lambda x: x.double(), lambda x: x.expand(2, 4, 5, 6)):
        handle = getattr(block, name).register_forward_hook(lambda *args, other=other: other(args[-1]))
        grad_output = torch.randn_like(u, dtype=block(u).dtype)
        assert_close(results(block, u, grad_output), results(Definition(block), u, grad_output))
        handle.remove()


def test_metadata_of_an_image_stay_with_the_features(fast_passes):
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6)
    output = block(MetaTensor(u, meta={"name": "case 7"}).requires_grad_())
    assert isinstance(output, MetaTensor)
    assert output.meta["name"] == "case 7"
    assert len(fast_passes) == 1
    found = results(block, MetaTensor(u).requires_grad_(), torch.ones_like(u))
    expected = results(Definition(block), u.requires_grad_(), torch.ones_like(u))
    assert_close([x.as_subclass(torch.Tensor) for x in found], expected)


def test_an_activation_may_change_the_output_in_place():
    block, u = ChannelSpatialSE(2, 4), torch.randn(2, 4, 5, 6)
    for x in (u, MetaTensor(u)):
        block(x.requires_grad_()).relu_().sum().backward()


def test_recomputation_gives_the_same_gradients():
    block = ChannelSpatialSE(2, 4)
    u = torch.randn(2, 4, 5, 6, requires_grad=True)
    recomputed = nn.Sequential(block)
    recomputed.forward = lambda x: checkpoint(block, x, use_reentrant=False)
    assert_close(results(recomputed, u, torch.ones_like(u)), results(Definition(block), u, torch.ones_like(u)))


def test_little_more_than_the_features_is_kept_and_nothing_outlives_the_graph():
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


def test_script_trace_export_and_compile_have_the_definition(fast_passes):
    block, u = ChannelSpatialSE(2, 4), torch.randn(2, 4, 5, 6)
    expected = Definition(block)(u)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(block, (u,)).module()
    for program in (torch.jit.script(block), torch.jit.trace(block, u, check_trace=False), exported, compiled):
        torch.testing.assert_close(program(u), expected, atol=1e-6, rtol=0)
    assert not fast_passes


@pytest.mark.parametrize(
    "change",
    [
        lambda block, u: (block, u[:0]),
        lambda block, u: (block.to("meta"), u.to("meta")),
        lambda block, u: (block.requires_grad_(False) and torch.inference_mode()(block), u),
    ],
    ids=["empty", "meta", "inference"],
)
def test_features_without_data_or_gradient_pass(change):
    block, u = change(ChannelSpatialSE(2, 4), torch.randn(2, 4, 5, 6))
    assert block(u).shape == u.shape


def test_small_features_and_those_without_gradient_are_not_worth_it(monkeypatch, fast_passes):
    monkeypatch.setattr(fast_max, "_LEAST", 2**15)
    block = ChannelSpatialSE(2, 64)
    block(torch.rand(1, 64, 8, 8))
    with torch.no_grad():
        block(torch.rand(1, 64, 32, 32))
    assert not fast_passes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block(torch.rand(1, 64, 32, 32))  # maps of another type than the features
    assert not fast_passes
    block(torch.rand(1, 64, 32, 32))
    assert fast_passes
