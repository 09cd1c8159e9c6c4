# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
import torch.nn.functional as F

from monai_attn.blocks import AutofocusConv
from monai_attn.visualize import capture_attention

from ..conftest import count, trained

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = {1: (37,), 2: (19, 16), 3: (9, 8, 7)}
DIMS = [1, 2, 3]
FORMS = {"plain": {}, "own kernels": {"share_weights": False}, "crop": {"crop": 2}}


def restated(block: AutofocusConv, u: torch.Tensor) -> torch.Tensor:
    """The equations, one after the other, for batch normalization in evaluation."""
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


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dims", DIMS)
def test_the_layer_equals_its_equations_to_1e_12(dims, form):
    u = torch.randn(2, 6, *SIZES[dims], dtype=torch.float64)
    block = trained(AutofocusConv(dims, 6, 5, **FORMS[form]).double())
    torch.testing.assert_close(block(u), restated(block, u), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("dims", "norm"), [(1, "batch"), (2, None), (3, "batch"), (2, ("batch", {"affine": False}))])
def test_without_gradients_the_folded_sum_equals_the_definition(dims, norm, form):
    u = torch.randn(2, 6, *SIZES[dims])
    block = AutofocusConv(dims, 6, 5, norm=norm, **FORMS[form])
    block = trained(block) if norm == "batch" else block.train()
    block(u)
    expected = block.eval()(u)
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
def test_normalization_that_depends_on_the_input_is_not_folded(norm):
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


@pytest.mark.parametrize(("dims", "dilation"), [(1, 14), (2, 2), (3, 1)])
def test_one_scale_without_normalization_is_the_convolution_of_that_dilation(dims, dilation):
    block = AutofocusConv(dims, 4, 3, dilations=(dilation,), norm=None)
    u = torch.randn(2, 4, *SIZES[dims])
    expected = CONV[dims](u, block.conv.weight, dilation=dilation, padding=dilation)
    assert torch.equal(block(u), expected)


@pytest.mark.parametrize("mode", ["train", "no_grad", "memory_efficient"])
def test_the_map_is_captured_in_every_way_of_computing_and_sums_to_one_at_every_voxel(mode):
    block = AutofocusConv(2, 4, 3, memory_efficient=mode == "memory_efficient").train(mode != "no_grad")
    u = torch.randn(1, 4, 9, 8)
    with capture_attention(block) as maps, torch.set_grad_enabled(mode != "no_grad"):
        block(u)
    torch.testing.assert_close(maps["gate"], block.attend(u), atol=1e-6, rtol=0)
    assert ((maps["gate"] > 0) & (maps["gate"] < 1)).all()
    torch.testing.assert_close(maps["gate"].sum(1), torch.ones(1, 9, 8), atol=2e-7, rtol=0)


@pytest.mark.parametrize(("dims", "crop"), [(1, 2), (2, 1), (3, 2)])
def test_a_cropped_layer_gives_the_inside_of_the_same_sized_one_also_in_script_and_export(dims, crop):
    u = torch.randn(2, 4, *SIZES[dims])
    same = trained(AutofocusConv(dims, 4, 3))
    cropped = AutofocusConv(dims, 4, 3, crop=crop).eval()
    cropped.load_state_dict(same.state_dict())
    inside = (slice(None), slice(None), *[slice(crop, side - crop) for side in SIZES[dims]])
    for layer in (cropped, torch.jit.script(cropped), torch.export.export(cropped, (u,)).module()):
        torch.testing.assert_close(layer(u), same(u)[inside], atol=1e-6, rtol=0)


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


def test_memory_efficient_gradients_are_those_of_the_mode_of_the_forward_pass():
    block = AutofocusConv(2, 4, 3, memory_efficient=True).double().train()
    gradients = []
    for mode in (True, False):
        x = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        loss = block.train()(x).square().sum()
        block.train(mode)
        gradients.append(torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("form", "norm", "training"),
    [
        ("plain", "batch", True),
        ("own kernels", ("batch", {"momentum": None}), True),
        ("crop", ("batch", {"affine": False}), False),
        ("plain", ("group", {"num_groups": 1}), True),
        ("crop", "batch", False),
        ("own kernels", None, True),
    ],
)
def test_memory_efficient_training_has_the_outputs_gradients_and_statistics_of_the_plain_form(form, norm, training):
    plain = AutofocusConv(2, 6, 9, norm=norm, detach_attention=False, **FORMS[form]).double()
    lean = AutofocusConv(2, 6, 9, norm=norm, detach_attention=False, memory_efficient=True, **FORMS[form]).double()
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


@pytest.mark.parametrize(("dims", "autocast"), [(1, True), (2, False), (3, True)])
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


@pytest.mark.parametrize(("dims", "c", "o", "k"), [(3, 40, 50, 4), (2, 30, 40, 4), (1, 7, 5, 2)])
def test_the_layer_has_the_number_of_parameters_of_its_formula(dims, c, o, k):
    h, kernel = c // 2, 3**dims
    attention = kernel * c * h + h + h * k + k
    for share, kernels in ((True, 1), (False, k)):
        block = AutofocusConv(dims, c, o, dilations=range(1, k + 1), share_weights=share)
        assert count(block) == kernels * kernel * c * o + k * 2 * o + attention


@pytest.mark.parametrize("dilations", [(), (0, 2), (-1, 2), (2, 2), (6, 2), (2, 10, 6), (1.5, 1.9)])
def test_dilations_that_are_not_rising_integers_raise(dilations):
    with pytest.raises(ValueError, match="dilations must be rising integers"):
        AutofocusConv(2, 4, 3, dilations=dilations)


@pytest.mark.parametrize("crop", [-1, 3])
def test_a_crop_beyond_the_smallest_dilation_raises(crop):
    with pytest.raises(ValueError, match=f"smallest dilation, 2, got {crop}"):
        AutofocusConv(2, 4, 3, crop=crop)


@pytest.mark.parametrize("channels", [0, 1])
def test_too_few_channels_for_the_attention_raise(channels):
    with pytest.raises(ValueError, match=f"in_channels must be at least 2.*got {channels}"):
        AutofocusConv(2, channels, 3)


def test_an_input_that_the_crop_uses_up_raises():
    block = AutofocusConv(2, 4, 3, crop=2)
    with pytest.raises(ValueError, match="crop=2 needs more than 4 voxels"):
        block(torch.rand(1, 4, 9, 4))
    assert block.eval()(torch.rand(1, 4, 5, 9)).shape == (1, 3, 1, 5)
