# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.losses import DiceLoss

from monai_attn.losses import BalancedBCELoss, EdgeLoss

DIMS = pytest.mark.parametrize("spatial_dims", [1, 2, 3])


def some_edges(fraction: float, spatial_dims: int = 3, batch: int = 2, channels: int = 1) -> torch.Tensor:
    """The first voxels of every map are edges."""
    voxels = 8**spatial_dims
    flat = (torch.arange(voxels) < fraction * voxels).float()
    return flat.reshape([8] * spatial_dims).expand(batch, channels, *[8] * spatial_dims)


@DIMS
@pytest.mark.parametrize("fraction", [1 / 8, 1 / 2, 7 / 8])
def test_at_logits_of_zero_the_entropy_has_its_closed_form(spatial_dims, fraction):
    beta = 1 - fraction
    edges = some_edges(fraction, spatial_dims)
    loss = BalancedBCELoss()(torch.zeros(edges.shape), edges)
    assert loss == pytest.approx(2 * beta * (1 - beta) * math.log(2))  # .1516 at 7/8


def test_half_edges_give_half_the_plain_entropy():
    edges, logits = some_edges(0.5), torch.randn(2, 1, 8, 8, 8)
    assert torch.allclose(BalancedBCELoss()(logits, edges), F.binary_cross_entropy_with_logits(logits, edges) / 2)


def test_edges_have_the_weight_of_the_many_and_non_edges_that_of_the_few():
    # read to the letter, the names below eq. 6 are exchanged: the two results would be exchanged, too
    edges = some_edges(1 / 8)
    sure = 40 * (2 * edges - 1)
    missed = BalancedBCELoss(reduction="none")(-sure, edges)
    assert torch.allclose(missed[edges == 1], torch.tensor(7 / 8 * 40))
    assert torch.allclose(missed[edges == 0], torch.tensor(1 / 8 * 40))
    assert BalancedBCELoss()(sure, edges) < 1e-15


@pytest.mark.parametrize("fraction", [0, 1])
def test_to_the_letter_a_patch_without_or_full_of_edges_teaches_nothing(fraction):
    logits = torch.randn(2, 1, 8, 8, 8, requires_grad=True)
    loss = BalancedBCELoss(beta_range=None)(logits, some_edges(fraction))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_by_default_false_edges_on_a_patch_without_edges_cost_something():
    logits = torch.randn(2, 1, 8, 8, 8, requires_grad=True)
    loss = BalancedBCELoss()(logits, some_edges(0))
    loss.backward()
    assert torch.allclose(loss, 0.01 * F.softplus(logits).mean())
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("batch", [False, True])
def test_beta_is_that_of_each_sample_and_channel_or_of_the_batch(batch):
    edges = torch.cat([some_edges(1 / 8, batch=1), some_edges(3 / 8, batch=1)]).repeat(1, 2, 1, 1, 1)
    edges[:, 1] = 1 - edges[:, 1]
    logits = torch.randn(edges.shape)
    loss = BalancedBCELoss(batch=batch, reduction="none")(logits, edges)
    plain = F.binary_cross_entropy_with_logits(logits, edges, reduction="none")
    betas = torch.tensor([[6 / 8, 2 / 8]] * 2 if batch else [[7 / 8, 1 / 8], [5 / 8, 3 / 8]])
    betas = betas.reshape(2, 2, 1, 1, 1)
    assert torch.allclose(loss, torch.where(edges == 1, betas, 1 - betas) * plain)


def test_non_edges_without_a_weight_count_fully():
    edges, logits = some_edges(1 / 8), torch.randn(2, 1, 8, 8, 8)
    loss = BalancedBCELoss(weight_non_edges=False, reduction="none")(logits, edges)
    plain = F.binary_cross_entropy_with_logits(logits, edges, reduction="none")
    assert torch.allclose(loss, torch.where(edges == 1, 7 / 8, 1.0) * plain)


def test_the_sum_is_the_mean_times_the_number_of_voxels():
    edges, logits = some_edges(1 / 8), torch.randn(2, 1, 8, 8, 8)
    losses = {reduction: BalancedBCELoss(reduction=reduction)(logits, edges) for reduction in ("mean", "sum", "none")}
    assert torch.allclose(losses["sum"], losses["mean"] * edges.numel())
    assert torch.allclose(losses["none"].mean(), losses["mean"])


def test_a_soft_target_counts_as_a_part_of_both_sets():
    logits = torch.randn(1, 1, 6)
    target = torch.full((1, 1, 6), 0.25)
    probability = logits.sigmoid()
    expected = -(0.75 * 0.25 * probability.log() + 0.25 * 0.75 * (1 - probability).log())
    assert torch.allclose(BalancedBCELoss()(logits, target), expected.mean())


def test_the_dice_of_eq_4_is_monais():
    logits, edges = torch.randn(2, 1, 8, 8, 8), (torch.rand(2, 1, 8, 8, 8) > 0.8).float()
    predicted, axes = logits.sigmoid(), (2, 3, 4)
    numerator = 2 * (predicted * edges).sum(axes)
    eq_4 = 1 - numerator / (predicted.square().sum(axes) + edges.square().sum(axes) + 1e-5)
    dice = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5)(logits, edges)
    assert torch.allclose(dice, eq_4.mean(), atol=1e-7)
    assert torch.allclose(EdgeLoss(lambda_bce=0)(logits, edges), eq_4.mean(), atol=1e-6)


def test_the_edge_loss_is_the_weighted_sum_of_its_terms():
    logits, edges = torch.randn(2, 1, 8, 8, 8), some_edges(1 / 8)
    loss = EdgeLoss(lambda_dice=2.0, lambda_bce=3.0, balanced_bce=BalancedBCELoss(beta_range=(0.5, 0.5)))
    total = loss(logits.requires_grad_(), edges)
    assert torch.allclose(total, 2 * loss.terms["edge_dice"] + 3 * loss.terms["edge_bce"])
    assert torch.equal(loss.terms["edge_dice"], DiceLoss(sigmoid=True, squared_pred=True)(logits, edges))
    assert torch.allclose(loss.terms["edge_bce"], F.binary_cross_entropy_with_logits(logits, edges) / 2)
    assert not any(term.requires_grad for term in loss.terms.values())
    default = EdgeLoss()
    total = default(logits, edges)
    assert torch.allclose(total, default.terms["edge_dice"] + 0.5 * default.terms["edge_bce"])


@pytest.mark.parametrize("loss", [BalancedBCELoss(), EdgeLoss()])
def test_half_precision_is_computed_in_single(loss):
    logits, edges = 300 * torch.randn(1, 1, 48, 48, 48), some_edges(0.1, batch=1).repeat(1, 1, 6, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(logits.half(), edges.half())
    assert result.dtype == torch.float32
    assert torch.isfinite(result)
    assert torch.allclose(result, loss(logits.half().float(), edges))


@pytest.mark.parametrize("loss", [BalancedBCELoss(), EdgeLoss()])
def test_metadata_are_left_behind(loss):
    logits, edges = torch.randn(1, 1, 8, 8), some_edges(0.1, 2, batch=1)
    with_meta = loss(MetaTensor(logits), MetaTensor(edges))
    assert type(with_meta) is torch.Tensor
    assert torch.equal(with_meta, loss(logits, edges))


@pytest.mark.parametrize("loss", [BalancedBCELoss(), EdgeLoss()])
def test_a_target_of_another_shape_is_refused(loss):
    with pytest.raises(ValueError, match=r"different shape \(1, 1, 4\) from input \(1, 2, 4\)"):
        loss(torch.zeros(1, 2, 4), torch.zeros(1, 1, 4))


@pytest.mark.parametrize("beta_range", [(0.9, 0.1), (-0.1, 1.0), (0.0, 1.1)])
def test_bounds_of_beta_that_are_none_are_refused(beta_range):
    with pytest.raises(ValueError, match="interval within 0 to 1"):
        BalancedBCELoss(beta_range=beta_range)


@pytest.mark.parametrize("option", ["lambda_dice", "lambda_bce"])
def test_negative_weights_are_refused(option):
    with pytest.raises(ValueError, match="must not be negative"):
        EdgeLoss(**{option: -1.0})
