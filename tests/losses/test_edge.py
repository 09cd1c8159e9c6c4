# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.losses import DiceLoss

from monai_attn.losses import BalancedBCELoss, EdgeConsistencyLoss, EdgeLoss, EGCNNLoss
from monai_attn.transforms import edge_targets, foreground_masks

QUIET = EdgeConsistencyLoss(noise=False)


def some_edges(fraction: float, spatial_dims: int = 3, batch: int = 2, channels: int = 1) -> torch.Tensor:
    """The first voxels of every map are edges."""
    voxels = 8**spatial_dims
    flat = (torch.arange(voxels) < fraction * voxels).float()
    return flat.reshape([8] * spatial_dims).expand(batch, channels, *[8] * spatial_dims)


# --- balanced cross-entropy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spatial_dims", "fraction"), [(1, 1 / 2), (2, 7 / 8), (3, 1 / 8)])
def test_at_logits_of_zero_the_entropy_has_its_closed_form(spatial_dims, fraction):
    beta = 1 - fraction
    edges = some_edges(fraction, spatial_dims)
    loss = BalancedBCELoss()(torch.zeros(edges.shape), edges)
    assert loss == pytest.approx(2 * beta * (1 - beta) * math.log(2))  # .1516 at 7/8


def test_edges_have_the_weight_of_the_many_and_non_edges_that_of_the_few():
    # read to the letter, the names below eq. 6 are exchanged: the two results would be exchanged, too
    edges = some_edges(1 / 8)
    sure = 40 * (2 * edges - 1)
    missed = BalancedBCELoss(reduction="none")(-sure, edges)
    assert torch.allclose(missed[edges == 1], torch.tensor(7 / 8 * 40))
    assert torch.allclose(missed[edges == 0], torch.tensor(1 / 8 * 40))
    assert BalancedBCELoss()(sure, edges) < 1e-15
    half, logits = some_edges(0.5), torch.randn(2, 1, 8, 8, 8)
    assert torch.allclose(BalancedBCELoss()(logits, half), F.binary_cross_entropy_with_logits(logits, half) / 2)


@pytest.mark.parametrize("fraction", [0, 1])
def test_to_the_letter_a_patch_without_or_full_of_edges_teaches_nothing(fraction):
    logits = torch.randn(2, 1, 8, 8, 8, requires_grad=True)
    loss = BalancedBCELoss(empty_weight=0.0)(logits, some_edges(fraction))
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_by_default_false_edges_on_a_patch_without_edges_cost_something():
    logits = torch.randn(2, 1, 8, 8, 8, requires_grad=True)
    loss = BalancedBCELoss()(logits, some_edges(0))
    loss.backward()
    assert torch.allclose(loss, 0.01 * F.softplus(logits).mean())
    assert (logits.grad > 0).all()


def test_the_small_structure_of_a_large_crop_has_the_weights_of_eq_6():
    # the edges of a ball of radius 5 in a crop of 96 voxels a side: beta is 0.9989
    edges = torch.zeros(1, 1, 96, 96, 96)
    edges[..., :10, :10, :10] = 1
    loss = BalancedBCELoss(reduction="none")(torch.zeros(edges.shape), edges)
    assert loss[edges == 1].unique() == pytest.approx((1 - 1000 / 96**3) * math.log(2))
    assert loss[edges == 0].unique() == pytest.approx(1000 / 96**3 * math.log(2))


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
    entropy = BalancedBCELoss(weight_non_edges=False, reduction="none")
    plain = F.binary_cross_entropy_with_logits(logits, edges, reduction="none")
    assert torch.allclose(entropy(logits, edges), torch.where(edges == 1, 7 / 8, 1.0) * plain)
    assert torch.allclose(entropy(logits, 0 * edges), F.softplus(logits))  # so does a map without edges


def test_the_sum_is_the_mean_times_the_number_of_voxels():
    edges, logits = some_edges(1 / 8), torch.randn(2, 1, 8, 8, 8)
    losses = {reduction: BalancedBCELoss(reduction=reduction)(logits, edges) for reduction in ("mean", "sum", "none")}
    assert torch.allclose(losses["sum"], losses["mean"] * edges.numel())
    assert torch.allclose(losses["none"].mean(), losses["mean"])


def test_a_soft_target_counts_as_a_part_of_both_sets():
    logits = torch.randn(1, 1, 6)
    probability = logits.sigmoid()
    expected = -(0.75 * 0.25 * probability.log() + 0.25 * 0.75 * (1 - probability).log())
    assert torch.allclose(BalancedBCELoss()(logits, torch.full((1, 1, 6), 0.25)), expected.mean())


# --- edge loss -----------------------------------------------------------------------------------------------------


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
    loss = EdgeLoss(lambda_dice=2.0, lambda_bce=3.0, balanced_bce=BalancedBCELoss(weight_non_edges=False))
    total = loss(logits.requires_grad_(), edges)
    assert torch.allclose(total, 2 * loss.terms["edge_dice"] + 3 * loss.terms["edge_bce"])
    assert torch.equal(loss.terms["edge_dice"], DiceLoss(sigmoid=True, squared_pred=True)(logits, edges))
    assert torch.equal(loss.terms["edge_bce"], loss.balanced_bce(logits, edges))
    assert not any(term.requires_grad for term in loss.terms.values())
    default = EdgeLoss()
    total = default(logits, edges)
    assert torch.allclose(total, default.terms["edge_dice"] + 0.5 * default.terms["edge_bce"])


@pytest.mark.parametrize("loss", [BalancedBCELoss(), EdgeLoss()])
def test_half_precision_is_computed_in_single_metadata_left_behind_and_another_shape_refused(loss):
    logits, edges = 300 * torch.randn(1, 1, 48, 48, 48), some_edges(0.1, batch=1).repeat(1, 1, 6, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss(MetaTensor(logits.half()), MetaTensor(edges.half()))
    assert (type(result), result.dtype) == (torch.Tensor, torch.float32)
    assert torch.isfinite(result)
    assert torch.allclose(result, loss(logits.half().float(), edges))
    with pytest.raises(ValueError, match=r"different shape \(1, 1, 4\) from input \(1, 2, 4\)"):
        loss(torch.zeros(1, 2, 4), torch.zeros(1, 1, 4))


# --- total ---------------------------------------------------------------------------------------------------------


def outputs(spatial_dims: int = 3, classes: int = 3, edge_classes: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    size = [8] * spatial_dims
    return torch.randn(2, classes, *size, requires_grad=True), torch.randn(2, edge_classes, *size, requires_grad=True)


def some_label(spatial_dims: int = 3, classes: int = 3) -> torch.Tensor:
    label = torch.zeros(2, 1, *[8] * spatial_dims, dtype=torch.uint8)
    label[:, :, 2:4] = 1
    label[:, :, 4:6] = classes - 1
    return label


@pytest.mark.parametrize(("spatial_dims", "edge_classes"), [(1, 1), (2, 2), (3, 1)])
def test_the_total_is_the_sum_of_the_four_terms(spatial_dims, edge_classes):
    segmentation, edges = outputs(spatial_dims, edge_classes=edge_classes)
    label = some_label(spatial_dims)
    target = edge_targets(foreground_masks(label, 3), per_class=edge_classes > 1)
    edge_loss = EdgeLoss()
    expected = (
        DiceLoss(softmax=True, to_onehot_y=True, include_background=False, squared_pred=True)(segmentation, label)
        + QUIET(segmentation, label)
        + edge_loss(edges, target)
    )
    loss = EGCNNLoss(consistency=QUIET)
    assert torch.allclose(loss((segmentation, edges), label), expected)
    assert list(loss.terms) == ["semantic", "consistency", "edge_dice", "edge_bce"]
    assert torch.equal(loss.terms["edge_bce"], edge_loss.terms["edge_bce"])


def test_the_weights_are_those_of_the_terms_which_hold_no_graph():
    weights = {"lambda_semantic": 2.0, "lambda_consistency": 3.0, "lambda_edge_dice": 5.0, "lambda_edge_bce": 7.0}
    loss = EGCNNLoss(**weights, consistency=QUIET)
    logits = outputs()
    total = loss(list(logits), some_label())
    total.backward()
    assert all(output.grad.isfinite().all() and output.grad.any() for output in logits)
    assert torch.allclose(total, sum(weight * loss.terms[name[7:]] for name, weight in weights.items()))
    assert not any(term.requires_grad for term in loss.terms.values())
    assert copy.deepcopy(loss).terms == loss.terms


def test_the_segmentation_alone_has_the_semantic_loss_alone():
    segmentation, _ = outputs()
    loss = EGCNNLoss(lambda_semantic=2.0)
    total = loss(segmentation, some_label())
    assert list(loss.terms) == ["semantic"]
    assert torch.equal(total, 2 * loss.terms["semantic"])
    assert loss(segmentation, some_label()) == total  # without any noise


def test_a_sigmoid_network_takes_overlapping_masks_and_loses_none():
    segmentation, edges = outputs(edge_classes=3)
    masks = (torch.rand(2, 3, 8, 8, 8) > 0.5).float()
    quiet = EdgeConsistencyLoss(noise=False, sigmoid=True)
    total = EGCNNLoss(sigmoid=True, consistency=quiet)((segmentation, edges), masks)
    expected = (
        DiceLoss(sigmoid=True, squared_pred=True)(segmentation, masks)
        + quiet(segmentation, masks)
        + EdgeLoss()(edges, edge_targets(masks.bool(), per_class=True))
    )
    assert torch.allclose(total, expected)
    total.backward()
    assert all(segmentation.grad[:, channel].any() for channel in range(3))


@pytest.mark.parametrize("sigmoid", [False, True])
def test_a_structure_of_its_own_takes_one_channel_or_two(sigmoid):
    result = EGCNNLoss(sigmoid=sigmoid)(outputs(classes=1 if sigmoid else 2), some_label(classes=2))
    assert torch.isfinite(result)


def test_the_background_counts_only_if_asked_for():
    segmentation, edges = outputs()
    loss = EGCNNLoss(include_background=True)
    loss((segmentation, edges), some_label())
    dice = DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True)
    assert torch.equal(loss.terms["semantic"], dice(segmentation, some_label()))
    assert loss.consistency.include_background


def test_the_main_stream_has_a_loss_of_its_own_only_with_a_weight():
    segmentation, edges = outputs()
    main = torch.randn_like(segmentation).requires_grad_()
    torch.manual_seed(0)
    plain, without = EGCNNLoss(consistency=QUIET), EGCNNLoss(consistency=QUIET)
    assert torch.equal(plain((segmentation, edges, main), some_label()), without((segmentation, edges), some_label()))
    weighted = EGCNNLoss(consistency=QUIET, main_weight=0.7)
    total = weighted((segmentation, edges, main), some_label())
    dice = DiceLoss(softmax=True, to_onehot_y=True, include_background=False, squared_pred=True)(main, some_label())
    assert torch.allclose(total, plain((segmentation, edges), some_label()) + 0.7 * dice)
    assert torch.equal(weighted.terms["main"], dice.detach())
    total.backward()
    assert main.grad.any()


@pytest.mark.parametrize("options", [{"threshold": 0.3}, {"soft": True}])
def test_the_options_of_the_edges_are_passed_on(options):
    _, edges = outputs()
    label = torch.zeros(2, 1, 8, 8, 8)
    label[:, :, 2:6, 2:6, 2:6] = 1
    loss = EGCNNLoss(**options, balanced_bce=BalancedBCELoss(empty_weight=0.0))
    loss((torch.randn(2, 2, 8, 8, 8), edges), label)
    target = edge_targets(label.bool(), **options)
    assert not torch.equal(target, edge_targets(label.bool()))
    assert torch.equal(loss.terms["edge_bce"], BalancedBCELoss(empty_weight=0.0)(edges, target))


def test_half_precision_and_metadata_make_no_difference():
    segmentation, edges = (logits.detach().half() for logits in outputs())
    loss = EGCNNLoss(consistency=QUIET)
    expected = loss((segmentation.float(), edges.float()), some_label())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss((MetaTensor(segmentation), MetaTensor(edges)), MetaTensor(some_label()))
    assert (type(result), result.dtype) == (torch.Tensor, torch.float32)
    assert torch.equal(result, expected)


def test_outputs_of_another_shape_are_refused():
    segmentation, edges = outputs()
    with pytest.raises(ValueError, match="expected 1, or 2 for those of each"):
        EGCNNLoss()((segmentation, edges.expand(-1, 3, -1, -1, -1)), some_label())
    with pytest.raises(ValueError, match="wrap the network in AllOutputs"):
        EGCNNLoss(main_weight=1.0)((segmentation, edges), some_label())
    with pytest.raises(ValueError, match="ground truth has different shape"):
        EGCNNLoss()((segmentation, edges[..., 1:]), some_label())
    with pytest.raises(ValueError, match="class indices for sigmoid=False"):
        EGCNNLoss()((segmentation, edges), some_label()[..., 1:])


def test_negative_weights_are_refused():
    options = {
        EdgeLoss: ["lambda_dice", "lambda_bce"],
        EGCNNLoss: ["lambda_semantic", "lambda_consistency", "main_weight"],
        BalancedBCELoss: ["empty_weight"],
    }
    for loss, names in options.items():
        for name in names:
            with pytest.raises(ValueError, match=f"{name}=-1.0.* must not be negative"):
                loss(**{name: -1.0})
