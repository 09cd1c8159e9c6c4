# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from monai_attn.data import median_frequency_weights


def test_weights_of_two_images_by_hand():
    # class 0: 3 + 2 of 8 pixels, class 1: 1 of the 4 pixels of the first image, class 2: 2 of the 4 of the second
    labels = [torch.tensor([[[0, 0], [0, 1]]]), torch.tensor([[[0, 0], [2, 2]]])]
    frequency = torch.tensor([5 / 8, 1 / 4, 2 / 4])
    assert torch.allclose(median_frequency_weights(labels, 3), frequency.median() / frequency)


def test_an_absent_class_gets_no_weight_and_a_warning():
    with pytest.warns(UserWarning, match=r"classes \[2\] occur in no label"):
        weights = median_frequency_weights([torch.tensor([[[0, 1]]])], 3)
    assert weights.tolist() == [1.0, 1.0, 0.0]


def test_slices_of_a_volume_are_images_of_their_own_and_files_are_read_in_ras_orientation(tmp_path):
    volume = MetaTensor(torch.zeros(1, 3, 4, 5), affine=torch.eye(4))
    volume[0, 0, 1, 1:3] = 1  # two pixels, each in a slice of its own across axis 2
    expected = median_frequency_weights(list(volume.as_tensor().unbind(3)), 2)
    assert torch.equal(median_frequency_weights([volume], 2, spatial_dim=2), expected)
    assert not torch.equal(median_frequency_weights([volume], 2), expected)
    turned = Orientation(axcodes="PIR")(volume)
    image = nibabel.Nifti1Image(turned[0].numpy().astype(np.uint8), turned.affine.numpy())
    nibabel.save(image, tmp_path / "label.nii.gz")
    assert torch.equal(median_frequency_weights([str(tmp_path / "label.nii.gz")], 2, spatial_dim=2), expected)


@pytest.mark.parametrize("value", [-1, 3])
def test_values_outside_the_classes_are_refused(value):
    with pytest.raises(ValueError, match="expected 0 to 2"):
        median_frequency_weights([torch.tensor([[[0, value]]])], 3)


def test_no_labels_are_refused():
    with pytest.raises(ValueError, match="labels is empty"):
        median_frequency_weights([], 3)
