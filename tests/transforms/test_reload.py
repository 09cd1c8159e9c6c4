# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged, Orientationd, Spacingd

from monai_attn.transforms import ReloadImaged


def test_a_resampled_label_becomes_what_its_file_holds(tmp_path):
    label = np.random.RandomState(0).randint(0, 3, (8, 9, 10)).astype(np.uint8)
    path = str(tmp_path / "label.nii.gz")
    nibabel.save(nibabel.Nifti1Image(label, np.diag([-1.0, 1.0, 1.0, 1.0])), path)
    preprocessing = Compose(
        [
            LoadImaged("label", ensure_channel_first=True),
            Orientationd("label", "RAS", labels=None),
            Spacingd("label", 2.0, mode="nearest"),
        ]
    )
    transformed = preprocessing({"label": path})
    assert transformed["label"].shape != (1, 8, 9, 10)
    reloaded = ReloadImaged("label")({**transformed, "image": 1})
    assert torch.equal(reloaded["label"].as_tensor()[0], torch.as_tensor(label).float())
    assert reloaded["image"] == 1


def test_a_missing_key_is_an_error_unless_allowed():
    with pytest.raises(KeyError):
        ReloadImaged("label")({})
    assert ReloadImaged("label", allow_missing_keys=True)({}) == {}
