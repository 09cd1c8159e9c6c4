# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_attn.data import cases
from monai_attn.data.phantom import PHANTOMS, make_phantom

BUNDLES = sorted(
    path.parent.parent.name for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json")
)


def test_every_bundle_has_its_phantom():
    assert sorted(PHANTOMS) == BUNDLES


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_phantom_is_a_data_set_like_the_real_one(bundle, tmp_path):
    folder = make_phantom(bundle, tmp_path / "p", cases=5, seed=3)
    assert (len(cases(folder)), len(cases(folder, "validation"))) == (4, 1)
    labels = json.loads((folder / "dataset.json").read_text())["labels"]
    seen = set()
    for case in cases(folder):
        image, label = nibabel.load(case["image"]), nibabel.load(case["label"])
        assert image.shape == label.shape
        assert np.allclose(image.header.get_zooms()[:3], PHANTOMS[bundle].spacing)
        assert np.isfinite(image.get_fdata()).all()
        values = set(np.unique(np.asarray(label.dataobj)).tolist())
        assert values <= {int(value) for value in labels}
        seen |= values
    assert seen == {int(value) for value in labels}


def test_a_phantom_depends_on_its_seed_alone(tmp_path):
    folders = [make_phantom(BUNDLES[0], tmp_path / str(i), cases=2, seed=seed) for i, seed in enumerate([0, 0, 1])]
    images = [np.asarray(nibabel.load(cases(folder)[0]["image"]).dataobj) for folder in folders]
    assert np.array_equal(images[0], images[1])
    assert images[0].shape != images[2].shape or not np.array_equal(images[0], images[2])


def test_an_existing_data_set_is_not_overwritten(tmp_path):
    make_phantom(BUNDLES[0], tmp_path, cases=2)
    with pytest.raises(FileExistsError, match="holds a data set already"):
        make_phantom(BUNDLES[0], tmp_path, cases=2)


def test_an_unknown_bundle_or_too_few_cases_are_refused(tmp_path):
    with pytest.raises(ValueError, match="hippocampus"):
        make_phantom("hippocampus", tmp_path)
    with pytest.raises(ValueError, match="at least 2"):
        make_phantom(BUNDLES[0], tmp_path, cases=1)
