# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from monai.data import MetaTensor
from monai.losses import DiceLoss

from monai_attn.losses import BalancedBCELoss, EdgeConsistencyLoss, EdgeLoss, EGCNNLoss
from monai_attn.transforms import edge_targets, foreground_masks

DIMS = pytest.mark.parametrize("spatial_dims", [1, 2, 3])
QUIET = EdgeConsistencyLoss(noise=False)


def outputs(spatial_dims: int = 3, classes: int = 3, edge_classes: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    size = [8] * spatial_dims
    return torch.randn(2, classes, *size, requires_grad=True), torch.randn(2, edge_classes, *size, requires_grad=True)


def some_label(spatial_dims: int = 3, classes: int = 3) -> torch.Tensor:
    label = torch.zeros(2, 1, *[8] * spatial_dims, dtype=torch.uint8)
    label[:, :, 2:4] = 1
    label[:, :, 4:6] = classes - 1
    return label


@DIMS
@pytest.mark.parametrize("edge_classes", [1, 2])
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


def test_the_weights_are_those_of_the_terms():
    weights = {"lambda_semantic": 2.0, "lambda_consistency": 3.0, "lambda_edge_dice": 5.0, "lambda_edge_bce": 7.0}
    loss = EGCNNLoss(**weights, consistency=QUIET)
    total = loss(outputs(), some_label())
    assert torch.allclose(total, sum(weight * loss.terms[name[7:]] for name, weight in weights.items()))


@pytest.mark.parametrize("form", [tuple, list])
def test_every_output_learns_from_the_total(form):
    segmentation, edges = outputs()
    EGCNNLoss()(form([segmentation, edges]), some_label()).backward()
    for logits in (segmentation, edges):
        assert torch.isfinite(logits.grad).all()
        assert logits.grad.abs().max() > 0


def test_the_segmentation_alone_has_the_semantic_loss_alone():
    segmentation, _ = outputs()
    loss = EGCNNLoss(lambda_semantic=2.0, aux_main_weight=1.0)
    total = loss(segmentation, some_label())
    assert list(loss.terms) == ["semantic"]
    assert torch.equal(total, 2 * loss.terms["semantic"])
    assert loss(segmentation, some_label()) == total  # without any noise


def test_the_terms_hold_no_graph():
    loss = EGCNNLoss()
    loss(outputs(), some_label())
    assert not any(term.requires_grad for term in loss.terms.values())
    assert copy.deepcopy(loss).terms == loss.terms


def test_a_sigmoid_network_takes_overlapping_masks_and_loses_none():
    segmentation, edges = outputs(edge_classes=3)
    masks = (torch.rand(2, 3, 8, 8, 8) > 0.5).float()
    quiet = EdgeConsistencyLoss(noise=False, sigmoid=True)
    loss = EGCNNLoss(sigmoid=True, consistency=quiet)
    total = loss((segmentation, edges), masks)
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
    segmentation, edges = outputs(classes=1 if sigmoid else 2)
    label = some_label(classes=2)
    loss = EGCNNLoss(sigmoid=sigmoid)
    assert torch.isfinite(loss((segmentation, edges), label))


def test_the_background_counts_only_if_asked_for():
    segmentation, edges = outputs()
    label = some_label()
    loss = EGCNNLoss(include_background=True)
    loss((segmentation, edges), label)
    dice = DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True)
    assert torch.equal(loss.terms["semantic"], dice(segmentation, label))
    assert loss.consistency.include_background


@pytest.mark.parametrize("options", [{"threshold": 0.3}, {"soft": True}])
def test_the_options_of_the_edges_are_passed_on(options):
    _, edges = outputs()
    label = torch.zeros(2, 1, 8, 8, 8)
    label[:, :, 2:6, 2:6, 2:6] = 1
    loss = EGCNNLoss(**options, balanced_bce=BalancedBCELoss(beta_range=None))
    loss((torch.randn(2, 2, 8, 8, 8), edges), label)
    target = edge_targets(label.bool(), **options)
    assert not torch.equal(target, edge_targets(label.bool()))
    assert torch.equal(loss.terms["edge_bce"], BalancedBCELoss(beta_range=None)(edges, target))


def test_the_main_stream_may_have_a_dice_of_its_own():
    segmentation, edges = outputs()
    main, label = outputs()[0], some_label()
    plain, both = EGCNNLoss(consistency=QUIET), EGCNNLoss(consistency=QUIET, aux_main_weight=0.4)
    total = both((segmentation, edges, main), label)
    assert torch.allclose(total, plain((segmentation, edges), label) + 0.4 * plain(main, label))
    assert torch.equal(both.terms["main"], plain(main, label))
    with pytest.raises(ValueError, match=r"got 2 outputs; give \(segmentation, edges, main\)"):
        both((segmentation, edges), label)


def test_half_precision_and_metadata_make_no_difference():
    segmentation, edges = (logits.detach().half() for logits in outputs())
    label = some_label()
    loss = EGCNNLoss(consistency=QUIET)
    expected = loss((segmentation.float(), edges.float()), label)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = loss((MetaTensor(segmentation), MetaTensor(edges)), MetaTensor(label))
    assert type(result) is torch.Tensor
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_outputs_of_another_shape_are_refused():
    segmentation, edges = outputs()
    with pytest.raises(ValueError, match="expected 1 for those of all classes or 2 for those of each"):
        EGCNNLoss()((segmentation, edges.expand(-1, 3, -1, -1, -1)), some_label())
    with pytest.raises(ValueError, match="ground truth has different shape"):
        EGCNNLoss()((segmentation, edges[..., 1:]), some_label())
    with pytest.raises(ValueError, match="class indices for sigmoid=False"):
        EGCNNLoss()((segmentation, edges), some_label()[..., 1:])


@pytest.mark.parametrize(
    "option", ["lambda_semantic", "lambda_consistency", "lambda_edge_dice", "lambda_edge_bce", "aux_main_weight"]
)
def test_negative_weights_are_refused(option):
    with pytest.raises(ValueError, match="must not be negative"):
        EGCNNLoss(**{option: -1.0})
