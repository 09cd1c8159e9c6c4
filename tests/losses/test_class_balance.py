# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.losses import DiceLoss
from monai.transforms import Orientation

from monai_attn.losses import ClassBalancedLoss, median_frequency_weights


def test_weights_of_two_images_by_hand():
    # class 0: 3 + 2 of 8 pixels, class 1: 1 of the 4 pixels of the first image, class 2: 2 of the 4 of the second
    labels = [torch.tensor([[[0, 0], [0, 1]]]), torch.tensor([[[0, 0], [2, 2]]])]
    frequency = torch.tensor([5 / 8, 1 / 4, 2 / 4])
    assert torch.allclose(median_frequency_weights(labels, 3), frequency.median() / frequency)


def test_equal_frequencies_give_weights_of_one():
    label = torch.arange(4).reshape(1, 2, 2)
    assert torch.equal(median_frequency_weights([label, label], 4), torch.ones(4))


def test_the_class_of_median_frequency_has_weight_one():
    label = torch.tensor([[[0] * 6 + [1] * 3 + [2]]])
    assert median_frequency_weights([label], 3)[1] == 1


def test_an_absent_class_gets_no_weight_and_a_warning():
    with pytest.warns(UserWarning, match=r"classes \[2\] occur in no label"):
        weights = median_frequency_weights([torch.tensor([[[0, 1]]])], 3)
    assert weights.tolist() == [1.0, 1.0, 0.0]


def test_slices_of_a_volume_are_images_of_their_own():
    volume = torch.zeros(1, 2, 3, 4, dtype=torch.uint8)
    volume[0, 1, 1, 1] = 1  # one pixel, in one of three slices across axis 1
    slices = list(volume.unbind(2))
    assert torch.equal(median_frequency_weights([volume], 2, spatial_dim=1), median_frequency_weights(slices, 2))
    assert not torch.equal(median_frequency_weights([volume], 2, spatial_dim=1), median_frequency_weights([volume], 2))


def test_files_are_read_in_ras_orientation(tmp_path):
    volume = MetaTensor(torch.zeros(1, 3, 4, 5), affine=torch.eye(4))
    volume[0, 0, 1, 1:3] = 1
    turned = Orientation(axcodes="PIR")(volume)
    image = nibabel.Nifti1Image(turned[0].numpy().astype(np.uint8), turned.affine.numpy())
    nibabel.save(image, tmp_path / "label.nii.gz")
    expected = median_frequency_weights([volume], 2, spatial_dim=2)
    assert torch.equal(median_frequency_weights([str(tmp_path / "label.nii.gz")], 2, spatial_dim=2), expected)


@pytest.mark.parametrize("value", [-1, 3])
def test_values_outside_the_classes_are_refused(value):
    with pytest.raises(ValueError, match="expected 0 to 2"):
        median_frequency_weights([torch.tensor([[[0, value]]])], 3)


def test_no_labels_are_refused():
    with pytest.raises(ValueError, match="labels is empty"):
        median_frequency_weights([], 3)


@pytest.mark.parametrize("spatial", [(9,), (6, 7), (4, 5, 6)])
def test_without_options_it_is_torchs_weighted_cross_entropy(spatial):
    logits, classes = torch.randn(2, 3, *spatial), torch.randint(0, 3, (2, 1, *spatial))
    weight = torch.tensor([0.2, 1.0, 3.0])
    loss = ClassBalancedLoss(weight)(logits, classes)
    assert torch.allclose(loss, F.cross_entropy(logits, classes[:, 0], weight=weight))
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
    plain, both = ClassBalancedLoss(), ClassBalancedLoss(lambda_dice=0.5)
    dice = DiceLoss(softmax=True, to_onehot_y=True)(logits, classes)
    assert torch.allclose(both(logits, classes), plain(logits, classes) + 0.5 * dice)


def test_a_patch_of_classes_without_weight_has_no_loss_and_finite_gradients():
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    loss = ClassBalancedLoss(torch.tensor([0.0, 1.0]))(logits, torch.zeros(1, 1, 4, 4))
    loss.backward()
    assert loss == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_is_computed_in_single():
    logits = 200 * torch.randn(1, 2, 96, 96)
    classes = torch.randint(0, 2, (1, 1, 96, 96))
    loss = ClassBalancedLoss(lambda_dice=1.0)(logits.half(), classes)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, ClassBalancedLoss(lambda_dice=1.0)(logits.half().float(), classes))


def test_a_target_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"must have shape \(1, 1, 4, 4\)"):
        ClassBalancedLoss()(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4))


@pytest.mark.parametrize("option", ["boundary_weight", "lambda_dice"])
def test_negative_weights_are_refused(option):
    with pytest.raises(ValueError, match="must not be negative"):
        ClassBalancedLoss(**{option: -1.0})
