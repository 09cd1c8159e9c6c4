# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss

from monai_attn.losses import CropBorderLoss


@pytest.mark.parametrize(("size", "margin"), [((12,), 3), ((12, 11), 0), ((12, 11, 13), 3)])
def test_the_loss_is_that_of_the_center_and_the_border_gets_no_gradient(size, margin):
    loss = DiceCELoss(softmax=True, to_onehot_y=True)
    logits, label = torch.randn(2, 3, *size, requires_grad=True), torch.randint(0, 3, (2, 1, *size))
    center = (slice(None), slice(None), *[slice(margin, side - margin) for side in size])
    result = CropBorderLoss(loss, margin)(logits, label)
    assert torch.equal(result, loss(logits[center], label[center]))
    result.backward()
    assert logits.grad[center].all()
    assert logits.grad.count_nonzero() == logits[center].numel()


def test_margins_that_leave_nothing_raise():
    with pytest.raises(ValueError, match="0 or more"):
        CropBorderLoss(torch.nn.MSELoss(), -1)
    with pytest.raises(ValueError, match="leaves nothing"):
        CropBorderLoss(torch.nn.MSELoss(), 4)(torch.zeros(1, 1, 9, 8), torch.zeros(1, 1, 9, 8))
    for size in ((1, 1), (10, 10), (11, 13)):
        with pytest.raises(ValueError, match="or one larger by equal borders"):
            CropBorderLoss(torch.nn.MSELoss(), 2)(torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, *size))


def test_half_precision_is_computed_in_single():
    """More than 65504 voxels, the largest number of half precision, do not overflow."""
    logits = torch.zeros(1, 2, 300, 300, dtype=torch.float16, requires_grad=True)
    cropped = CropBorderLoss(DiceCELoss(softmax=True, to_onehot_y=True, squared_pred=True), 2)
    loss = cropped(logits, torch.ones(1, 1, 300, 300))
    assert torch.equal(loss, cropped(logits.detach().float(), torch.ones(1, 1, 300, 300)))
    loss.backward()
    assert logits.grad.isfinite().all()
