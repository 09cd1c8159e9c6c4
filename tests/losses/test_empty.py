# SPDX-License-Identifier: Apache-2.0
"""Every loss of the bundles on patches of one class alone, and on numbers that are none."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss

from monai_attn.losses import (
    BalancedBCELoss,
    ClassBalancedLoss,
    CropBorderLoss,
    EdgeConsistencyLoss,
    EdgeLoss,
    EGCNNLoss,
)

CLASSES = 3
# the loss, and whether its target is masks rather than class indices
LOSSES = {
    "class balanced": (
        partial(ClassBalancedLoss, torch.tensor([0.5, 0.0, 2.0]), boundary_weight=2, lambda_dice=1),
        False,
    ),
    "central Dice": (lambda: CropBorderLoss(DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True), 1), False),
    "central entropy": (lambda: CropBorderLoss(DiceCELoss(softmax=True, to_onehot_y=True, lambda_dice=0.0), 1), False),
    "Dice and entropy": (
        lambda: DiceCELoss(include_background=False, softmax=True, to_onehot_y=True, batch=True),
        False,
    ),
    "binary Dice": (lambda: DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0), True),
    "balanced entropy": (BalancedBCELoss, True),
    "edge": (EdgeLoss, True),
    "consistency": (EdgeConsistencyLoss, False),
    "EG-CNN": (EGCNNLoss, False),
    "EG-CNN, masks": (partial(EGCNNLoss, sigmoid=True), True),
}

every_loss = pytest.mark.parametrize(("make", "masks"), LOSSES.values(), ids=LOSSES)


def outputs(make, logits):
    """What the network gives: EG-CNN has edges too."""
    return (logits, logits[:, :1]) if isinstance(make(), EGCNNLoss) else logits


def target(masks, value):
    label = torch.full((2, 1, 8, 8), float(value))
    return torch.cat([label == c for c in range(CLASSES)], dim=1).float() * (value > 0) if masks else label


@every_loss
@pytest.mark.parametrize("value", range(CLASSES))
@pytest.mark.parametrize("scale", [0.0, 1.0, 200.0])
def test_a_patch_of_one_class_alone_has_a_finite_loss_and_finite_gradients(make, masks, value, scale):
    logits = (scale * torch.randn(2, CLASSES, 8, 8)).requires_grad_()
    loss = make()(outputs(make, logits), target(masks, value))
    assert loss.isfinite()
    loss.backward()
    assert logits.grad is None or logits.grad.isfinite().all()


@every_loss
def test_a_logit_that_is_nan_makes_the_loss_nan(make, masks):
    """So that the training stops, rather than learn from what is none."""
    label = target(masks, 2)
    label[..., 4:] = 0
    logits = torch.randn(2, CLASSES, 8, 8)
    logits[..., 3:5] = torch.nan
    assert make()(outputs(make, logits), label).isnan()
