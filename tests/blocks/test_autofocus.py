# SPDX-License-Identifier: Apache-2.0
import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from monai_attn.blocks import AutofocusConv
from monai_attn.visualize import capture_attention

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = {1: (37,), 2: (19, 16), 3: (9, 8, 7)}
DIMS = [1, 2, 3]
FORMS = {"plain": {}, "own kernels": {"share_weights": False}, "crop": {"crop": 2}}


def trained(block: nn.Module, u: torch.Tensor) -> nn.Module:
    """The block with statistics and affine parameters that are not those of the start."""
    for norm in block.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    block.train()
    with torch.no_grad():
        for scale in (1, 2):
            block(scale * u)
    return block.eval()


def restated(block: AutofocusConv, u: torch.Tensor) -> torch.Tensor:
    """The equations, one after the other, for batch normalisation in evaluation."""
    dims, crop = u.ndim - 2, block.crop
    conv = CONV[dims]
    hidden, logits = block.attention[0], block.attention[2]
    a = conv(conv(u, hidden.weight, hidden.bias, padding=1).clamp(min=0), logits.weight, logits.bias)
    attention = a.exp() / a.exp().sum(1, keepdim=True)
    kernels = block.conv.weight.split(len(block.norms[0].weight))
    total = 0
    for k, (dilation, norm) in enumerate(zip(block.dilations, block.norms)):
        features = conv(u, kernels[k % len(kernels)], dilation=dilation, padding=dilation)
        shape = (1, -1, *[1] * dims)
        mean, var = norm.running_mean.reshape(shape), norm.running_var.reshape(shape)
        gamma, beta = norm.weight.reshape(shape), norm.bias.reshape(shape)
        total = total + attention[:, k : k + 1] * ((features - mean) / (var + norm.eps).sqrt() * gamma + beta)
    inside = (slice(None), slice(None), *[slice(crop, side - crop) for side in u.shape[2:]])
    return total[inside]


# --- definition --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dims", DIMS)
def test_the_layer_equals_its_equations_to_1e_12(dims, form):
    u = torch.randn(2, 6, *SIZES[dims], dtype=torch.float64)
    block = trained(AutofocusConv(dims, 6, 5, **FORMS[form]).double(), u)
    torch.testing.assert_close(block(u), restated(block, u), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("norm", ["batch", None, ("batch", {"affine": False})])
@pytest.mark.parametrize("dims", DIMS)
def test_without_gradients_the_folded_sum_equals_the_definition(dims, norm, form):
    u = torch.randn(2, 6, *SIZES[dims])
    block = AutofocusConv(dims, 6, 5, norm=norm, **FORMS[form])
    block = trained(block, u) if norm == "batch" else block.train()
    block(u)
    block.eval()
    expected = block(u)
    with torch.no_grad():
        assert block._can_fold()
        output = block(u)
    assert not output.requires_grad
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    block.double()
    with torch.inference_mode():
        output = block(u.double())
    torch.testing.assert_close(output.clone(), block(u.double()).detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 1}), ("batch", {"track_running_stats": False})])
def test_normalisation_that_depends_on_the_input_is_not_folded(norm):
    block = AutofocusConv(2, 4, 3, norm=norm).eval()
    u = torch.randn(2, 4, 9, 8)
    with torch.no_grad():
        assert not block._can_fold()
        output = block(u)
    assert torch.equal(output, block(u))


def test_in_training_nothing_is_folded_and_statistics_are_learnt():
    block = AutofocusConv(2, 4, 3)
    with torch.no_grad():
        block(torch.randn(2, 4, 9, 8))
    assert all(norm.num_batches_tracked == 1 and norm.running_mean.any() for norm in block.norms)


@pytest.mark.parametrize("dilation", [1, 2, 14])
@pytest.mark.parametrize("dims", DIMS)
def test_one_scale_without_normalisation_is_the_convolution_of_that_dilation(dims, dilation):
    block = AutofocusConv(dims, 4, 3, dilations=(dilation,), norm=None)
    u = torch.randn(2, 4, *SIZES[dims])
    expected = CONV[dims](u, block.conv.weight, dilation=dilation, padding=dilation)
    assert torch.equal(block(u), expected)


@pytest.mark.parametrize("dims", DIMS)
def test_equal_dilations_give_the_convolution_whatever_the_attention(dims):
    block = AutofocusConv(dims, 4, 3, dilations=(2, 3, 4), norm=None)
    block.dilations = [2, 2, 2]
    u = torch.randn(2, 4, *SIZES[dims])
    expected = CONV[dims](u, block.conv.weight, dilation=2, padding=2)
    torch.testing.assert_close(block(u), expected, atol=5e-7, rtol=0)


@pytest.mark.parametrize("dims", DIMS)
def test_attention_weights_are_positive_and_sum_to_one_at_every_voxel(dims):
    block = AutofocusConv(dims, 4, 3)
    with capture_attention(block) as maps:
        block(torch.randn(2, 4, *SIZES[dims]))
    attention = maps["gate"]
    assert attention.shape == (2, 4, *SIZES[dims])
    assert ((attention > 0) & (attention < 1)).all()
    torch.testing.assert_close(attention.sum(1), torch.ones(2, *SIZES[dims]), atol=2e-7, rtol=0)


@pytest.mark.parametrize("mode", ["train", "no_grad", "memory_efficient"])
def test_the_map_is_captured_in_every_way_of_computing(mode):
    block = AutofocusConv(2, 4, 3, memory_efficient=mode == "memory_efficient").train(mode != "no_grad")
    u = torch.randn(1, 4, 9, 8)
    with capture_attention(block) as maps, torch.set_grad_enabled(mode != "no_grad"):
        block(u)
    torch.testing.assert_close(maps["gate"], block.attend(u), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", DIMS)
def test_attention_of_zero_logits_is_the_mean_of_the_branches(dims):
    block = AutofocusConv(dims, 4, 3, norm=None)
    nn.init.zeros_(block.attention[2].weight)
    nn.init.zeros_(block.attention[2].bias)
    u = torch.randn(2, 4, *SIZES[dims])
    branches = [block.branch(u, k) for k in range(4)]
    assert torch.equal(block(u), 0.25 * branches[0] + 0.25 * branches[1] + 0.25 * branches[2] + 0.25 * branches[3])


@pytest.mark.parametrize("k", range(4))
def test_a_large_bias_of_one_logit_chooses_its_branch(k):
    block = AutofocusConv(2, 4, 3, norm=None)
    with torch.no_grad():
        block.attention[2].bias[k] += 1e4
    u = torch.randn(2, 4, 19, 16)
    assert torch.equal(block(u), block.branch(u, k))


@pytest.mark.parametrize("dims", DIMS)
def test_a_cropped_layer_gives_the_inside_of_the_same_sized_one(dims):
    u = torch.randn(2, 4, *SIZES[dims])
    same = trained(AutofocusConv(dims, 4, 3), u)
    for crop in (1, 2):
        cropped = AutofocusConv(dims, 4, 3, crop=crop).eval()
        cropped.load_state_dict(same.state_dict())
        inside = (slice(None), slice(None), *[slice(crop, side - crop) for side in SIZES[dims]])
        torch.testing.assert_close(cropped(u), same(u)[inside], atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_twice_the_dilation_on_a_zero_stuffed_input_gives_the_output_between_the_zeros(dims):
    u = torch.randn(1, 4, *SIZES[dims])
    every_second = (slice(None), slice(None), *[slice(None, None, 2)] * dims)
    stuffed = torch.zeros(1, 4, *[2 * side - 1 for side in SIZES[dims]])
    stuffed[every_second] = u
    fine, coarse = (AutofocusConv(dims, 4, 3, dilations=dilations, norm=None) for dilations in ((1, 3), (2, 6)))
    for block in (fine, coarse):  # attention by the voxel alone, as its 3x3 convolution has no dilation
        centre = (slice(None), slice(None), *[1] * dims)
        kept = fine.attention[0].weight.detach()[centre].clone()
        nn.init.zeros_(block.attention[0].weight)
        block.attention[0].weight.data[centre] = kept
    coarse.load_state_dict(fine.state_dict())
    torch.testing.assert_close(coarse(stuffed)[every_second], fine(u), atol=1e-6, rtol=0)


# --- gradients ---------------------------------------------------------------------------------------------------


def test_detached_attention_sends_no_gradient_to_the_input_and_attached_attention_does():
    gradients = {}
    for detach in (True, False):
        torch.manual_seed(0)
        block = AutofocusConv(2, 4, 3, detach_attention=detach, norm=None)
        u = torch.randn(2, 4, 9, 8, requires_grad=True)
        weight = torch.randn(2, 3, 9, 8)
        (gradients[detach],) = torch.autograd.grad((weight * block(u)).sum(), u)
    constant = block.attend(u).detach()
    fixed = sum(constant[:, k : k + 1] * block.branch(u, k) for k in range(4))
    (expected,) = torch.autograd.grad((weight * fixed).sum(), u)
    torch.testing.assert_close(gradients[True], expected, atol=1e-6, rtol=0)
    assert (gradients[False] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("memory_efficient", [True, False])
@pytest.mark.parametrize("detach", [True, False])
def test_every_parameter_gets_a_gradient(detach, memory_efficient):
    block = AutofocusConv(2, 6, 3, detach_attention=detach, memory_efficient=memory_efficient)
    block(torch.randn(2, 6, 9, 8)).pow(3).sum().backward()
    assert [key for key, value in block.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_gradients_agree_with_finite_differences():
    for options in ({}, {"memory_efficient": True}, {"memory_efficient": True, "norm": None}):
        block = AutofocusConv(1, 4, 2, detach_attention=False, dilations=(1, 2), **options).double()
        assert torch.autograd.gradcheck(block, torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "norm", ["batch", None, "instance", ("batch", {"momentum": None}), ("batch", {"affine": False})]
)
@pytest.mark.parametrize("form", FORMS)
def test_memory_efficient_training_has_the_outputs_gradients_and_statistics_of_the_plain_form(form, norm, training):
    plain = AutofocusConv(2, 6, 5, norm=norm, detach_attention=False, **FORMS[form]).double()
    lean = AutofocusConv(2, 6, 5, norm=norm, detach_attention=False, memory_efficient=True, **FORMS[form]).double()
    lean.load_state_dict(plain.state_dict())
    u = torch.randn(2, 6, 19, 16, dtype=torch.float64)
    weight = None
    for _ in range(2):
        results = []
        for block in (plain, lean):
            block.zero_grad()
            x = u.clone().requires_grad_()
            output = block.train(training)(x)
            weight = torch.randn_like(output) if weight is None else weight
            (weight * output).sum().backward()
            results.append([output, x.grad, *(p.grad for p in block.parameters()), *block.buffers()])
        for mine, other in zip(*results, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dims", DIMS)
def test_memory_efficient_gradients_in_single_and_half_precision_are_near_those_of_the_plain_form(dims, autocast):
    plain = AutofocusConv(dims, 6, 5, detach_attention=False)
    lean = AutofocusConv(dims, 6, 5, detach_attention=False, memory_efficient=True)
    lean.load_state_dict(plain.state_dict())
    u = torch.randn(3, 6, *SIZES[dims])  # smaller than the largest dilation in 3D
    weight = torch.randn(3, 5, *SIZES[dims])
    results = []
    for block in (plain, lean):
        x = u.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = block(x)
        (weight * output).sum().backward()
        results.append([output, x.grad, *(p.grad for p in block.parameters())])
    for expected, result in zip(*results, strict=True):
        assert result.dtype == expected.dtype
        # relative to the whole tensor; in bfloat16 one rounding is 0.004
        assert (result - expected).norm() < (0.05 if autocast else 1e-5) * expected.norm()


def test_a_bias_before_normalisation_is_inert_in_training():
    block = AutofocusConv(2, 4, 3)
    u = torch.randn(2, 4, 9, 8)
    expected = block(u)
    for norm in block.norms:
        norm.register_forward_pre_hook(lambda _m, inputs: inputs[0] + torch.tensor([5.0, -3, 1]).reshape(1, 3, 1, 1))
    torch.testing.assert_close(block(u), expected, atol=1e-5, rtol=0)


def test_attention_starts_uniform_from_small_weights_and_learns():
    block = AutofocusConv(2, 4, 3)
    for conv in (block.conv, block.attention[0], block.attention[2]):
        nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(block.attention[2].bias)
    u, target = torch.randn(2, 4, 19, 16), torch.randn(2, 3, 19, 16)

    @torch.no_grad()
    def entropy() -> float:
        attention = block.attend(u)
        return float(-(attention * attention.log()).sum(1).mean())

    assert entropy() == pytest.approx(math.log(4), abs=1e-3)
    optimiser = torch.optim.Adam(block.parameters(), lr=0.1)
    for _ in range(5):
        optimiser.zero_grad()
        (block(u) - target).square().mean().backward()
        optimiser.step()
    assert entropy() < math.log(4) - 1e-3


# --- parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize(("c", "o", "k"), [(40, 50, 4), (30, 40, 4), (7, 5, 2)])
def test_the_layer_has_the_number_of_parameters_of_its_formula(dims, c, o, k):
    h, kernel = c // 2, 3**dims
    attention = kernel * c * h + h + h * k + k
    for share, kernels in ((True, 1), (False, k)):
        block = AutofocusConv(dims, c, o, dilations=range(1, k + 1), share_weights=share)
        assert sum(p.numel() for p in block.parameters()) == kernels * kernel * c * o + k * 2 * o + attention


def test_own_kernels_that_are_equal_give_the_layer_of_shared_kernels():
    shared = AutofocusConv(2, 4, 3).eval()
    own = AutofocusConv(2, 4, 3, share_weights=False).eval()
    state = shared.state_dict()
    own.load_state_dict({**state, "conv.weight": state["conv.weight"].repeat(4, 1, 1, 1)})
    u = torch.randn(1, 4, 9, 8)
    assert torch.equal(own(u), shared(u))


# --- bad arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilations", [(), (0, 2), (-1, 2), (2, 2), (6, 2), (2, 10, 6)])
def test_dilations_that_are_not_positive_and_rising_raise(dilations):
    with pytest.raises(ValueError, match="dilations must be positive and rising"):
        AutofocusConv(2, 4, 3, dilations=dilations)


@pytest.mark.parametrize("crop", [-1, 3])
def test_a_crop_beyond_the_smallest_dilation_raises(crop):
    with pytest.raises(ValueError, match=f"smallest dilation, 2, got {crop}"):
        AutofocusConv(2, 4, 3, crop=crop)


@pytest.mark.parametrize("channels", [0, 1])
def test_too_few_channels_for_the_attention_raise(channels):
    with pytest.raises(ValueError, match=f"in_channels must be at least 2.*got {channels}"):
        AutofocusConv(2, channels, 3)


@pytest.mark.parametrize("dims", [0, 4])
def test_spatial_dims_out_of_range_raise(dims):
    with pytest.raises(ValueError, match=f"got {dims}"):
        AutofocusConv(dims, 4, 3)


def test_an_input_that_the_crop_uses_up_raises():
    block = AutofocusConv(2, 4, 3, crop=2)
    with pytest.raises(ValueError, match="crop=2 needs more than 4 voxels"):
        block(torch.rand(1, 4, 9, 4))
    assert block.eval()(torch.rand(1, 4, 5, 9)).shape == (1, 3, 1, 5)


def test_arguments_after_the_third_are_keyword_only():
    with pytest.raises(TypeError):
        AutofocusConv(2, 4, 3, (2, 6))


# --- memory layout, precision, compilers -------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dims", [2, 3])
def test_any_memory_layout_gives_the_output_of_contiguous_input(dims, grad):
    u = torch.randn(2, 4, *SIZES[dims])
    block = trained(AutofocusConv(dims, 4, 3), u)
    with torch.set_grad_enabled(grad):
        expected = block(u)
        last = u.contiguous(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
        transposed = u.transpose(2, 3).contiguous().transpose(2, 3)
        for layout in (last, transposed):
            assert not layout.is_contiguous()
            torch.testing.assert_close(block(layout), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("memory_efficient", [True, False])
def test_autocast_to_bfloat16_runs_in_training_and_evaluation_near_float32(memory_efficient):
    u = torch.randn(2, 4, 9, 8, requires_grad=True)
    block = trained(AutofocusConv(2, 4, 3, memory_efficient=memory_efficient), u)
    expected = block(u).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = block(u)
        output.float().sum().backward()
        with torch.no_grad():
            folded = block(u)
    assert u.grad.isfinite().all()
    for other in (output, folded):
        torch.testing.assert_close(other.float(), expected, atol=0.1, rtol=0.05)


def test_a_bfloat16_layer_is_near_the_float32_one():
    u = torch.randn(2, 4, 9, 8)
    block = trained(AutofocusConv(2, 4, 3), u)
    expected = block(u)
    with torch.no_grad():
        output = block.bfloat16()(u.bfloat16())
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, atol=0.1, rtol=0.05)


@pytest.mark.parametrize("form", [{}, {"crop": 2}, {"memory_efficient": True}])
@pytest.mark.parametrize("dims", DIMS)
def test_script_trace_and_export_equal_eager(dims, form):
    u = torch.randn(1, 4, *SIZES[dims])
    block = trained(AutofocusConv(dims, 4, 3, **form), u)
    expected = block(u)
    compiled = [torch.jit.script(block), torch.export.export(block, (u,)).module()]
    if "crop" not in form:
        compiled.append(torch.jit.trace(block, u))
    for other in compiled:
        # they are the plain form, and the memory-efficient one has another order of sums
        torch.testing.assert_close(other(u), expected, atol=1e-5 if block.memory_efficient else 0, rtol=0)
        with torch.no_grad():
            torch.testing.assert_close(other(u), expected, atol=1e-6, rtol=0)
    with torch.no_grad():
        exported = torch.export.export(block, (u,)).module()
        torch.testing.assert_close(exported(u), expected, atol=1e-6, rtol=0)


def test_compile_without_graph_break_equals_eager():
    u = torch.randn(1, 4, 9, 8)
    block = trained(AutofocusConv(2, 4, 3, memory_efficient=True), u)
    with torch.no_grad():
        compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(u), block(u), atol=1e-5, rtol=0)


def test_copy_and_pickle_keep_the_function():
    block = AutofocusConv(2, 4, 3).eval()
    u = torch.randn(1, 4, 9, 8)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert torch.equal(other(u), block(u))


# --- any shape ---------------------------------------------------------------------------------------------------


@given(
    batch=st.integers(1, 3),
    channels=st.integers(2, 6),
    size=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    dilations=st.lists(st.integers(1, 9), min_size=1, max_size=4, unique=True).map(sorted),
    grad=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_the_output_has_the_size_of_any_input(batch, channels, size, dilations, grad):
    block = AutofocusConv(len(size), channels, 3, dilations=dilations).eval()
    u = torch.randn(batch, channels, *size)
    with torch.set_grad_enabled(grad):
        output = block(u)
        alone = torch.cat([block(item) for item in u.split(1)])
    assert output.shape == (batch, 3, *size)
    torch.testing.assert_close(alone, output, atol=1e-5, rtol=0)
