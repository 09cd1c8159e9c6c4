# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation, SaveImage

from monai_attn.transforms import AsLabelMapd


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "SLA"])
def test_a_label_map_of_an_image_with_channels_is_written_on_the_images_grid(tmp_path, axcodes):
    affine = np.array([[1, 0.1, 0, 5], [-0.1, 2, 0, 7], [0, 0, 3, -9], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(np.random.RandomState(0).rand(6, 5, 4, 2), affine), tmp_path / "image.nii.gz")
    image = LoadImage(image_only=True, ensure_channel_first=True)(tmp_path / "image.nii.gz")
    image = Orientation(axcodes=axcodes, labels=None)(image)
    label_map = AsLabelMapd("pred")({"pred": (image[:1] > 0.5).float()})["pred"]
    assert label_map.dtype == torch.uint8
    SaveImage(output_dtype=np.uint8, resample=False, print_log=False)(label_map, filename=tmp_path / "pred")
    written = nibabel.load(tmp_path / "pred.nii.gz")
    assert written.shape == tuple(image.shape[1:])
    assert np.allclose(written.affine, image.affine)
    assert np.array_equal(np.asarray(written.dataobj), (image[0] > 0.5).numpy())


def test_other_metadata_are_kept_and_the_source_is_not_changed():
    pred = MetaTensor(torch.tensor([[[0.0, 3.0]]]), meta={"filename_or_obj": "case.nii.gz", "original_channel_dim": 0})
    label_map = AsLabelMapd("pred")({"pred": pred})["pred"]
    assert label_map.tolist() == [[[0, 3]]]
    assert label_map.meta["filename_or_obj"] == "case.nii.gz"
    assert pred.dtype == torch.float32
    assert pred.meta["original_channel_dim"] == 0


def test_probabilities_keep_their_values():
    pred = MetaTensor(torch.tensor([[[0.25, 1.0]]]), meta={"original_channel_dim": 0})
    probabilities = AsLabelMapd("pred", dtype=torch.float32)({"pred": pred})["pred"]
    assert probabilities.tolist() == [[[0.25, 1.0]]]
    assert probabilities.meta["original_channel_dim"] == "no_channel"
