# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from monai_attn.losses import CropBorderLoss


@pytest.mark.parametrize("size", [(12,), (12, 11), (12, 11, 13)], ids=str)
@pytest.mark.parametrize("margin", [0, 3])
def test_the_loss_is_that_of_the_centre(size, margin):
    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    logits, label = torch.randn(2, 3, *size), torch.randint(0, 3, (2, 1, *size))
    centre = (slice(None), slice(None), *[slice(margin, side - margin) for side in size])
    assert torch.equal(CropBorderLoss(loss, margin)(logits, label), loss(logits[centre], label[centre]))


def test_voxels_of_the_margin_get_no_gradient():
    logits = torch.randn(1, 2, 9, 9, requires_grad=True)
    CropBorderLoss(torch.nn.MSELoss(), 2)(logits, torch.zeros(1, 2, 9, 9)).backward()
    touched = logits.grad.abs().sum(dim=(0, 1)) > 0
    assert touched[2:7, 2:7].all()
    assert touched.sum() == 25


def test_margins_that_leave_nothing_raise():
    with pytest.raises(ValueError, match="0 or more"):
        CropBorderLoss(torch.nn.MSELoss(), -1)
    with pytest.raises(ValueError, match="larger crops"):
        CropBorderLoss(torch.nn.MSELoss(), 4)(torch.zeros(1, 1, 9, 8), torch.zeros(1, 1, 9, 8))


def test_half_precision_is_computed_in_single():
    """More than 65504 voxels, the largest number of half precision, do not overflow."""
    logits = torch.zeros(1, 2, 300, 300, dtype=torch.float16, requires_grad=True)
    label = torch.ones(1, 1, 300, 300)
    central = CropBorderLoss(DiceCELoss(softmax=True, to_onehot_y=True, squared_pred=True), 2)
    loss = central(logits, label)
    assert torch.equal(loss, central(logits.detach().float(), label))
    loss.backward()
    assert logits.grad.isfinite().all()
