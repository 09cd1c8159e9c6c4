# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import LoadImage
from monai.utils import ensure_tuple

from monai_attn.data import case_name, cases
from monai_attn.data.phantom import PHANTOMS, make_phantom

BUNDLES = {path.parents[1].name for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json")}
HIPPOCAMPUS = "hippocampus_mri_scse_segmentation"
OCT = "retinal_oct_scse_segmentation"
SKIN = "skin_lesion_focusnet_segmentation"
LUNG = "lung_ct_focusnet_segmentation"
BRATS = "brats_mri_autofocus_segmentation"

load = LoadImage(ensure_channel_first=True, image_only=True)


def test_every_bundle_has_its_phantom():
    assert set(PHANTOMS) == BUNDLES


@pytest.mark.parametrize("bundle", PHANTOMS)
def test_a_phantom_has_the_files_labels_spacing_and_intensities_of_the_real_data(bundle, phantom):
    expected, folder = PHANTOMS[bundle], phantom(bundle)
    listing = json.loads((folder / "dataset.json").read_text())
    assert listing["name"] == f"phantom of {bundle}"
    assert "made-up" in listing["description"]
    assert list(map(int, listing["labels"])) == list(expected.values)
    assert tuple(listing["modality"].values()) == expected.modalities
    for index, case in enumerate(cases(folder)[:2]):
        assert {Path(path).parent.name for path in ensure_tuple(case["image"])} == {"images"}
        assert all(path.endswith(expected.suffixes[0]) for path in ensure_tuple(case["image"]))
        assert case["label"].endswith(expected.suffixes[1])
        image, label = load(case["image"]), load(case["label"])
        assert image.shape == (3 if bundle == SKIN else len(expected.modalities), *label.shape[1:])
        assert torch.equal(image.affine, label.affine)
        assert np.allclose(image.pixdim, expected.spacings[index % len(expected.spacings)])
        assert label.unique().tolist() == list(expected.values)
        if "_ct_" in bundle and image.ndim == 4:  # Hounsfield units of air and of the body
            assert image.min() == -1000
            assert image[label > 0].min() > -100
        else:
            assert 0 <= image.min() < image.max() <= 300
        means = [image[0][label[0] == value].mean() for value in expected.values]
        assert means == sorted(means, reverse=expected.levels[0] > expected.levels[1])


def test_a_phantom_depends_on_its_seed_alone_and_more_cases_leave_the_first_ones_as_they_are(tmp_path):
    options = {"a": {"cases": 2}, "b": {"cases": 3}, "c": {"cases": 2, "seed": 1}}
    first, again, other = (make_phantom(HIPPOCAMPUS, tmp_path / name, **given) for name, given in options.items())
    for kind in ("images", "labels"):
        voxels = [load(folder / kind / "phantom_000.nii.gz") for folder in (first, again, other)]
        assert torch.equal(voxels[0], voxels[1])
        assert voxels[0].shape != voxels[2].shape or not torch.equal(voxels[0], voxels[2])


@pytest.mark.parametrize(
    ("bundle", "validation"),
    [(OCT, ["phantom_002_00", "phantom_002_01"]), (LUNG, ["phantom_001_00", "phantom_001_01"])],
)
def test_images_of_one_subject_are_in_one_section(phantom, bundle, validation):
    assert [case_name(case["image"]) for case in cases(phantom(bundle), "validation")] == validation


def test_modalities_are_files_of_their_own_and_a_mask_shows_the_body(phantom):
    case = cases(phantom(BRATS))[0]
    assert [case_name(file) for file in case["image"]] == [
        f"phantom_000_{name}" for name in ("t1", "t1c", "t2", "flair")
    ]
    image, mask = load(case["image"]), load(case["mask"])
    assert torch.equal(image.amin(dim=0) > 0, mask[0] > 0)
    assert not load(case["label"])[mask == 0].any()
