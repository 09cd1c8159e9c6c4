# SPDX-License-Identifier: Apache-2.0
"""Every loss of the bundles on patches of one class alone, and on numbers that are none."""

from __future__ import annotations

from collections.abc import Callable
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
BALANCED = partial(ClassBalancedLoss, torch.tensor([0.5, 0.0, 2.0]), boundary_weight=2, lambda_dice=1)
# losses of class indices, and of masks
INDICES: dict[str, Callable] = {
    "class balanced": BALANCED,
    "center": lambda: CropBorderLoss(DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True), 1),
    "center entropy": lambda: CropBorderLoss(DiceCELoss(softmax=True, to_onehot_y=True, lambda_dice=0.0), 1),
    "Dice and entropy": lambda: DiceCELoss(include_background=False, softmax=True, to_onehot_y=True, batch=True),
    "consistency": EdgeConsistencyLoss,
    "EG-CNN": EGCNNLoss,
}
MASKS: dict[str, Callable] = {
    "binary Dice": lambda: DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0),
    "balanced entropy": BalancedBCELoss,
    "edge": EdgeLoss,
    "EG-CNN, masks": partial(EGCNNLoss, sigmoid=True),
}


def call(name: str, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    loss = {**INDICES, **MASKS}[name]()
    target = torch.cat([label == c for c in range(CLASSES)], 1).float() * (label > 0) if name in MASKS else label
    return loss((logits, logits[:, :1]) if isinstance(loss, EGCNNLoss) else logits, target)


@pytest.mark.parametrize("name", [*INDICES, *MASKS])
def test_a_patch_of_one_class_alone_has_a_finite_loss_and_finite_gradients(name):
    for value in range(CLASSES):
        for scale in (0.0, 1.0, 200.0):
            logits = (scale * torch.randn(2, CLASSES, 8, 8)).requires_grad_()
            loss = call(name, logits, torch.full((2, 1, 8, 8), float(value)))
            assert loss.isfinite()
            loss.backward()
            assert logits.grad is None or logits.grad.isfinite().all()


@pytest.mark.parametrize("name", [*INDICES, *MASKS])
def test_a_logit_that_is_nan_makes_the_loss_nan(name):
    """So that the training stops, rather than learn from what is none."""
    label = torch.zeros(2, 1, 8, 8)
    label[..., :4] = 2
    logits = torch.randn(2, CLASSES, 8, 8)
    logits[..., 3:5] = torch.nan
    assert call(name, logits, label).isnan()
