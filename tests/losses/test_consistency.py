# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.networks.utils import one_hot

from monai_attn.losses import EdgeConsistencyLoss, consistency
from monai_attn.losses.consistency import target_masks
from monai_attn.transforms import sobel_edges


def two_boxes(spatial_dims: int = 3) -> torch.Tensor:
    """Class indices of two boxes that touch each other, in a background."""
    label = torch.zeros(2, 1, *[14] * spatial_dims, dtype=torch.uint8)
    middle = [slice(4, 10)] * (spatial_dims - 1)
    label[(..., slice(2, 7), *middle)] = 1
    label[(..., slice(7, 11), *middle)] = 2
    return label


@pytest.mark.parametrize("mask", ["target", "union"])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_the_sure_truth_costs_nothing(spatial_dims, mask):
    label = two_boxes(spatial_dims)
    logits = 20.0 * one_hot(label, 3)
    assert EdgeConsistencyLoss(noise=False, mask=mask)(logits, label) == 0
    assert EdgeConsistencyLoss(mask=mask)(logits, label) < 1e-6
    masks = target_masks(logits, label, sigmoid=False).float()
    binary = EdgeConsistencyLoss(noise=False, sigmoid=True, mask=mask)
    assert binary(40 * masks - 20, masks) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("hard", "noise", "sigmoid"), list(itertools.product([False, True], repeat=3)))
def test_every_logit_gets_a_finite_gradient_as_from_no_argmax(hard, noise, sigmoid):
    logits = torch.randn(1, 3, 6, 6, 6, requires_grad=True)
    label = torch.randint(0, 2, logits.shape) if sigmoid else torch.randint(0, 3, (1, 1, 6, 6, 6))
    EdgeConsistencyLoss(hard=hard, noise=noise, sigmoid=sigmoid)(logits, label).backward()
    assert torch.isfinite(logits.grad).all()
    # the labels are noise, so that all voxels are edges; here and there the terms of a gradient cancel
    assert (logits.grad != 0).float().mean() > 0.95


@pytest.mark.parametrize("hard", [False, True])
def test_as_tau_falls_it_becomes_the_difference_of_the_sobel_edges_of_the_argmax(hard):
    label, logits = two_boxes(), torch.randn(2, 3, 14, 14, 14)
    truth = sobel_edges(one_hot(label, 3))[:, 1:]
    predicted = sobel_edges(one_hot(logits.argmax(1, keepdim=True), 3))[:, 1:]
    edges = truth > 1e-4
    per_class = ((predicted - truth).abs() * edges).flatten(2).sum(2) / edges.flatten(2).sum(2)
    loss = EdgeConsistencyLoss(tau=1.0 if hard else 1e-6, noise=False, hard=hard)(logits, label)
    assert torch.allclose(loss, per_class.mean(), atol=1e-5)


def plain_edges(x: torch.Tensor) -> torch.Tensor:
    """One convolution with the dense kernels of the Sobel filter."""
    dims = x.ndim - 2
    difference, smooth = torch.tensor([-1.0, 0.0, 1.0]) / 2, torch.tensor([1.0, 2.0, 1.0]) / 4
    taps = [[difference if axis == other else smooth for other in range(dims)] for axis in range(dims)]
    kernels = torch.stack([torch.einsum(["i", "i,j->ij", "i,j,k->ijk"][dims - 1], *factors) for factors in taps])
    padded = F.pad(x.flatten(0, 1)[:, None], [1] * 2 * dims, mode="replicate")
    square = (F.conv1d, F.conv2d, F.conv3d)[dims - 1](padded, kernels[:, None]).square().sum(1)
    return square.clamp(min=1e-20).sqrt().reshape(x.shape)


@pytest.mark.parametrize("mask", ["target", "union"])
@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize(("spatial_dims", "at_once"), [(1, 2**20), (2, 2**20), (3, 2**20), (3, 1)])
def test_value_and_gradient_are_those_of_the_definition_however_many_maps_are_taken_at_once(
    monkeypatch, at_once, sigmoid, mask, spatial_dims
):
    monkeypatch.setattr(consistency, "_CACHED_VOXELS", at_once)
    label = two_boxes(spatial_dims)
    logits = torch.randn(2, 3, *[14] * spatial_dims, requires_grad=True)
    target = one_hot(label, 3) if sigmoid else label
    result = EdgeConsistencyLoss(noise=False, sigmoid=sigmoid, mask=mask, reduction="none")(logits, target)

    choice = torch.sigmoid(logits) if sigmoid else torch.softmax(logits, dim=1)[:, 1:]
    chosen = logits > 0 if sigmoid else one_hot(logits.argmax(1, keepdim=True), 3)[:, 1:]
    truth = plain_edges(target if sigmoid else one_hot(label, 3)[:, 1:])
    voxels = (truth > 1e-4) | (plain_edges(chosen.float()) > 1e-4) if mask == "union" else truth > 1e-4
    distance = (plain_edges(choice) - truth).abs() * voxels
    expected = distance.flatten(2).sum(2) / voxels.flatten(2).sum(2)

    assert torch.allclose(result, expected, atol=1e-6)
    weight = torch.rand(result.shape)
    gradients = [torch.autograd.grad((weight * loss).sum(), logits)[0] for loss in (result, expected)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_each_sample_and_class_has_a_mean_over_its_own_edges():
    label = two_boxes()
    label[1] = 0
    label[1, :, 3:5] = 1
    logits = torch.randn(2, 3, 14, 14, 14)
    losses = {r: EdgeConsistencyLoss(noise=False, reduction=r)(logits, label) for r in ("none", "mean", "sum")}
    assert losses["none"].shape == (2, 2)
    assert losses["none"][1, 1] == 0  # sample 1 has no class 2
    assert (losses["none"] > 0).sum() == 3
    assert torch.allclose(losses["sum"], losses["none"].sum())
    assert torch.allclose(losses["mean"], losses["none"].sum() / 3)
    with_background = EdgeConsistencyLoss(noise=False, reduction="none", include_background=True)(logits, label)
    assert with_background.shape == (2, 3)
    assert torch.equal(with_background[:, 1:], losses["none"])


def test_without_any_edge_there_is_no_loss_and_no_gradient():
    logits = torch.randn(1, 3, 6, 6, requires_grad=True)
    loss = EdgeConsistencyLoss()(logits, torch.zeros(1, 1, 6, 6))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_only_a_union_of_the_edges_sees_a_spurious_structure():
    label = two_boxes()
    predicted = label.clone()
    predicted[..., 11:14, 11:14, 11:14] = 1
    cases = [(20.0 * one_hot(predicted, 3), label, False)]
    cases.append((40 * one_hot(predicted, 3)[:, 1:] - 20, one_hot(label, 3)[:, 1:], True))
    for logits, target, sigmoid in cases:
        losses = [EdgeConsistencyLoss(noise=False, sigmoid=sigmoid, mask=mask) for mask in ("target", "union")]
        assert losses[0](logits, target) == pytest.approx(0, abs=1e-6)
        assert losses[1](logits, target) > 0.01


def test_the_noise_chooses_a_class_as_often_as_its_probability_says():
    probability = torch.tensor([0.1, 0.2, 0.3, 0.4]).reshape(1, 4, 1, 1, 1)
    chosen = EdgeConsistencyLoss(hard=True).sample(probability.log().expand(1, 4, 60, 60, 60))
    assert torch.equal(chosen.sum(1), torch.ones(1, 60, 60, 60))
    assert torch.allclose(chosen.mean((0, 2, 3, 4)), probability.flatten(), atol=3e-3)
    binary = EdgeConsistencyLoss(hard=True, sigmoid=True).sample(torch.full((60, 60, 60), 0.3).logit())
    assert binary.unique().tolist() == [0, 1]
    assert binary.mean() == pytest.approx(0.3, abs=3e-3)


@pytest.mark.parametrize(("tau", "expected"), [(2.0, 0.48), (1.0, 0.65), (0.5, 0.80), (0.1, 0.96)])
def test_the_choice_is_the_sharper_the_lower_tau(tau, expected):
    choice = EdgeConsistencyLoss(tau=tau).sample(torch.randn(1, 4, 40, 40, 40))
    assert choice.amax(1).mean() == pytest.approx(expected, abs=6e-3)


@pytest.mark.parametrize("hard", [False, True])
def test_with_noise_the_choice_is_distributed_as_torchs_gumbel_softmax(hard):
    logits = torch.tensor([0.0, 1.0, -1.0]).reshape(1, 3, 1).expand(1, 3, 100_000)
    choice = EdgeConsistencyLoss(tau=0.5, hard=hard).sample(logits)
    expected = F.gumbel_softmax(logits, tau=0.5, hard=hard, dim=1)
    quantiles = torch.linspace(0.02, 0.98, 13)
    for mine, theirs in zip(choice[0], expected[0]):
        assert torch.allclose(mine.mean(), theirs.mean(), atol=5e-3)
        if not hard:
            assert torch.allclose(mine.quantile(quantiles), theirs.quantile(quantiles), atol=1e-2)


def test_a_binary_choice_is_that_between_two_classes():
    logits = torch.randn(1, 1, 5, 5)
    two_classes = EdgeConsistencyLoss(tau=0.5, noise=False).sample(torch.cat([torch.zeros_like(logits), logits], 1))
    binary = EdgeConsistencyLoss(tau=0.5, noise=False, sigmoid=True).sample(logits)
    assert torch.allclose(binary, two_classes[:, 1:], atol=1e-6)


def test_the_noise_is_that_of_the_global_generator():
    label, logits = two_boxes(2), torch.randn(2, 3, 14, 14)
    loss = EdgeConsistencyLoss()
    torch.manual_seed(3)
    first = loss(logits, label)
    assert loss(logits, label) != first
    torch.manual_seed(3)
    assert loss(logits, label) == first


def test_half_precision_is_computed_in_single_and_metadata_are_left_behind():
    label, logits = two_boxes(), 100 * torch.randn(2, 3, 14, 14, 14).half()
    loss = EdgeConsistencyLoss(noise=False)
    expected = loss(logits.float(), label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(MetaTensor(logits), MetaTensor(label))
    assert (type(result), result.dtype) == (torch.Tensor, torch.float32)
    assert torch.equal(result, expected)


def test_a_target_of_another_form_and_options_that_make_no_sense_are_refused():
    logits = torch.zeros(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"expected \(1, 1, 4, 4\): class indices for sigmoid=False"):
        EdgeConsistencyLoss()(logits, torch.zeros(1, 3, 4, 4))
    with pytest.raises(ValueError, match=r"expected \(1, 3, 4, 4\): masks for sigmoid=True"):
        EdgeConsistencyLoss(sigmoid=True)(logits, torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="give sigmoid=True"):
        EdgeConsistencyLoss()(logits[:, :1], torch.zeros(1, 1, 4, 4))
    for options in ({"tau": 0.0}, {"tau": -1.0}, {"mask": "prediction"}):
        with pytest.raises(ValueError, match=r"tau must be positive|'prediction'"):
            EdgeConsistencyLoss(**options)
