# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from monai_attn.losses import ClassBalancedLoss


@pytest.mark.parametrize("spatial", [(9,), (6, 7), (4, 5, 6)])
def test_without_options_it_is_torchs_weighted_cross_entropy(spatial):
    logits, classes = torch.randn(2, 3, *spatial), torch.randint(0, 3, (2, 1, *spatial))
    weight = torch.tensor([0.2, 1.0, 3.0])
    assert torch.allclose(
        ClassBalancedLoss(weight)(logits, classes), F.cross_entropy(logits, classes[:, 0], weight=weight)
    )
    assert torch.allclose(ClassBalancedLoss()(logits, classes), F.cross_entropy(logits, classes[:, 0]))


def test_the_boundary_weight_counts_pixels_beside_another_class():
    classes = torch.zeros(1, 1, 4, 5)
    classes[0, 0, :, 3:] = 1
    weights = torch.ones(4, 5)
    weights[:, 2:4] += 2.0  # the columns on both sides of the edge
    logits = torch.randn(1, 2, 4, 5)
    entropy = F.cross_entropy(logits, classes[:, 0].long(), reduction="none")[0]
    expected = (weights * entropy).sum() / weights.sum()
    assert torch.allclose(ClassBalancedLoss(boundary_weight=2.0)(logits, classes), expected)


def test_the_dice_term_is_monais():
    logits, classes = torch.randn(2, 3, 6, 7), torch.randint(0, 3, (2, 1, 6, 7))
    dice = DiceLoss(softmax=True, to_onehot_y=True)(logits, classes)
    both = ClassBalancedLoss(lambda_dice=0.5)(logits, classes)
    assert torch.allclose(both, ClassBalancedLoss()(logits, classes) + 0.5 * dice)


def test_ignored_pixels_count_nowhere():
    logits, classes = torch.randn(2, 3, 6, 8, requires_grad=True), torch.randint(0, 3, (2, 1, 6, 8))
    loss = ClassBalancedLoss(torch.tensor([0.2, 1.0, 3.0]), boundary_weight=2.0, lambda_dice=0.5, ignore_index=255)
    expected = loss(logits[..., 2:], classes[..., 2:])
    classes[..., :2] = 255
    ours = loss(logits, classes)
    ours.backward()
    assert torch.allclose(ours, expected)
    assert not logits.grad[..., :2].any()


def test_pytorchs_class_of_ignored_pixels_is_ignored_by_default():
    logits, classes = torch.randn(2, 3, 6, 8), torch.randint(0, 3, (2, 1, 6, 8))
    classes[..., :4] = -100
    assert torch.allclose(ClassBalancedLoss()(logits, classes), F.cross_entropy(logits, classes[:, 0]))


def test_a_patch_of_classes_without_weight_has_no_loss_and_finite_gradients():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = ClassBalancedLoss(torch.tensor([0.0, 1.0]))(logits, torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_a_weight_for_other_classes_is_refused():
    with pytest.raises(ValueError, match="weight must have 3 values"):
        ClassBalancedLoss(torch.ones(9))(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4))


def test_half_precision_is_computed_in_single():
    logits, classes = 200 * torch.randn(1, 2, 96, 96), torch.randint(0, 2, (1, 1, 96, 96))
    loss = ClassBalancedLoss(lambda_dice=1.0)
    assert loss(logits.half(), classes).dtype == torch.float32
    assert torch.allclose(loss(logits.half(), classes), loss(logits.half().float(), classes))


def test_a_target_of_another_shape_and_negative_weights_are_refused():
    with pytest.raises(ValueError, match=r"must have shape \(1, 1, 4, 4\)"):
        ClassBalancedLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))
    with pytest.raises((IndexError, RuntimeError), match="-1 is out of bounds"):  # as F.cross_entropy
        ClassBalancedLoss()(torch.zeros(1, 2, 4, 4), -torch.ones(1, 1, 4, 4))
    for option in ("boundary_weight", "lambda_dice"):
        with pytest.raises(ValueError, match=rf"{option}=-1.0.* must not be negative"):
            ClassBalancedLoss(**{option: -1.0})
