# SPDX-License-Identifier: Apache-2.0
"""What holds for every block in 1D, 2D and 3D: gradients, memory layouts, precision, compilers and any shape."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_attn.blocks import AutofocusConv, ChannelSE, ChannelSpatialSE, EdgeGate, PreActResidual, SpatialSE

from ..conftest import trained

SIZES = {1: (11,), 2: (7, 6), 3: (5, 3, 4)}
FOCUS = {"detach_attention": False, "dilations": (1, 3)}
BLOCKS = {
    "cse": lambda dims: ChannelSE(dims, 4),
    "sse": lambda dims: SpatialSE(dims, 4),
    **{
        name: lambda dims, name=name: ChannelSpatialSE(dims, 4, aggregation=name)
        for name in ("max", "add", "mul", "mul_gate", "concat")
    },
    "autofocus": lambda dims: AutofocusConv(dims, 4, 3, **FOCUS),
    "lean autofocus": lambda dims: AutofocusConv(dims, 4, 3, memory_efficient=True, **FOCUS),
    "relu_sigmoid": lambda dims: EdgeGate(dims, 4, 4),
    "sigmoid": lambda dims: EdgeGate(dims, 4, 4, gate="sigmoid", attention_channels=None),
    "residual": lambda dims: PreActResidual(dims, 4, 5),
    "strided residual": lambda dims: PreActResidual(dims, 4, 4, stride=2, padding="tf"),
}

every_block = pytest.mark.parametrize("name", BLOCKS)


def images(name: str, *size: int, batch: int = 2, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """The features of a block; of a gate for edges those of both streams."""
    return [torch.randn(batch, 4, *size, dtype=dtype) for _ in range(1 + name.endswith("sigmoid"))]


def block_of(name: str, dims: int) -> nn.Module:
    return trained(BLOCKS[name](dims))


@every_block
def test_every_parameter_and_every_input_gets_a_gradient(name):
    block, inputs = BLOCKS[name](2), [x.requires_grad_() for x in images(name, 9, 8)]
    for path, bias in block.named_parameters():
        if path.endswith("fc1.bias"):
            nn.init.ones_(bias)  # no unit is off
    block(*inputs).pow(3).sum().backward()
    values = [*block.named_parameters(), *enumerate(inputs)]
    # batch norm takes away the bias of the convolution before it
    assert [key for key, x in values if not x.grad.any() and not str(key).endswith("conv1.bias")] == []


@every_block
def test_gradients_agree_with_finite_differences(name):
    block = block_of(name, 2).double()
    assert torch.autograd.gradcheck(block, [x.requires_grad_() for x in images(name, 3, 2, dtype=torch.float64)])


@every_block
def test_any_memory_layout_gives_the_output_of_contiguous_input_also_without_gradients(name):
    block, inputs = block_of(name, 3).double(), images(name, 5, 3, 4, dtype=torch.float64)
    expected = block(*inputs)
    for layout in (
        lambda x: x.contiguous(memory_format=torch.channels_last_3d),
        lambda x: x.movedim(-1, 0).contiguous().movedim(0, -1),
        lambda x: torch.stack([x, -x], dim=-1)[..., 0],
    ):
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(block(*map(layout, inputs)), expected, atol=1e-12, rtol=0)
    expanded = block(*(x[:1].expand_as(x) for x in inputs))
    torch.testing.assert_close(expanded, expected[:1].expand_as(expected), atol=1e-12, rtol=0)


@every_block
def test_bfloat16_by_autocast_in_training_and_evaluation_or_by_its_type_is_near_float32(name):
    block, inputs = block_of(name, 2), [x.requires_grad_() for x in images(name, 6, 5)]
    expected = block(*inputs).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = [block(*inputs)]
        outputs[0].float().sum().backward()
        with torch.no_grad():
            outputs += [block(*inputs)]
    assert all(x.grad.isfinite().all() for x in inputs)
    with torch.no_grad():
        outputs += [block.bfloat16()(*(x.bfloat16() for x in inputs))]
    assert outputs[-1].dtype == torch.bfloat16
    for output in outputs:
        torch.testing.assert_close(output.float(), expected, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("dims", SIZES)
@every_block
def test_script_trace_and_export_equal_eager(name, dims, tmp_path):
    block, inputs = block_of(name, dims), tuple(images(name, *SIZES[dims], batch=1))
    scripted = torch.jit.script(block)
    for compiled in (scripted, torch.jit.trace(block, inputs), torch.export.export(block, inputs).module()):
        # they are the plain form, and the lean one has another order of sums
        tolerance = 1e-5 if "lean" in name else 0
        torch.testing.assert_close(compiled(*inputs), block(*inputs), atol=tolerance, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(compiled(*inputs), block(*inputs), atol=1e-6, rtol=0)
    scripted.save(tmp_path / "block.ts")
    loaded, others = torch.jit.load(tmp_path / "block.ts"), images(name, *(8, 2, 3)[:dims])
    torch.testing.assert_close(loaded(*others), block(*others), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["max", "lean autofocus", "sigmoid"])
def test_compile_without_graph_break_equals_eager_and_so_do_a_copy_and_a_pickle(name):
    block, inputs = block_of(name, 2), images(name, 9, 8)
    with torch.no_grad():
        expected = block(*inputs)
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(*inputs), expected, atol=1e-5, rtol=0)
        for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
            assert torch.equal(other(*inputs), expected)


@given(
    name=st.sampled_from(list(BLOCKS)),
    batch=st.integers(1, 3),
    size=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    grad=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_an_item_of_any_shape_and_dtype_has_its_output_whatever_the_others(name, batch, size, dtype, grad):
    block, inputs = block_of(name, len(size)).to(dtype), images(name, *size, batch=batch, dtype=dtype)
    with torch.set_grad_enabled(grad):
        output = block(*inputs)
        alone = torch.cat([block(*item) for item in zip(*(x.split(1) for x in inputs))])
    assert output.shape[2:] == tuple(-(-side // 2) for side in size) if "strided" in name else tuple(size)
    assert output.dtype == dtype
    assert output.isfinite().all()
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(alone, output, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("kind", [ChannelSE, SpatialSE, ChannelSpatialSE, AutofocusConv, EdgeGate])
def test_spatial_dims_out_of_range_raise_and_options_are_keyword_only(kind):
    channels = (4,) if kind.__name__.endswith("SE") else (4, 4)
    for dims in (0, 4):
        with pytest.raises(ValueError, match=f"got {dims}"):
            kind(dims, *channels)
    with pytest.raises(TypeError):
        kind(2, *channels, 2)
