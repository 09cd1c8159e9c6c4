# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import LoadImage

from monai_attn.data import case_name, cases
from monai_attn.data.phantom import PHANTOMS, make_phantom
from monai_attn.errors import ConfigError, DataError

BUNDLES = {path.parents[1].name for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json")}
HIPPOCAMPUS = "hippocampus_mri_scse_segmentation"
OCT = "retinal_oct_scse_segmentation"
SECTIONS = ("training", "validation")

load = LoadImage(ensure_channel_first=True, image_only=True)


def test_every_bundle_has_its_phantom():
    assert set(PHANTOMS) >= BUNDLES


@pytest.mark.parametrize("bundle", PHANTOMS)
def test_a_phantom_is_a_data_set_like_the_real_one(bundle, tmp_path):
    phantom = PHANTOMS[bundle]
    folder = make_phantom(bundle, tmp_path / "p", cases=5, seed=3)
    assert (len(cases(folder)), len(cases(folder, "validation"))) == (4, 1)
    listing = json.loads((folder / "dataset.json").read_text())
    assert list(listing["labels"].values()) == list(phantom.labels)
    assert listing["modality"] == {"0": phantom.modality}
    seen = set()
    for case in cases(folder):
        assert case["image"].endswith(phantom.suffix)
        image, label = load(case["image"]), load(case["label"])
        assert image.shape == label.shape == (1, *image.shape[1:])
        assert image.ndim == 1 + len(phantom.spacing)
        assert np.allclose(image.pixdim, phantom.spacing)
        assert torch.equal(image.affine, label.affine)
        assert torch.isfinite(image).all()
        values = set(label.unique().int().tolist())
        assert values <= set(range(len(phantom.labels)))
        seen |= values
    assert seen == set(range(len(phantom.labels)))


@pytest.mark.parametrize("bundle", PHANTOMS)
def test_a_phantom_depends_on_its_seed_alone(bundle, tmp_path):
    folders = [make_phantom(bundle, tmp_path / str(i), cases=3, seed=seed) for i, seed in enumerate([0, 0, 1])]
    images = [load(cases(folder)[0]["image"]) for folder in folders]
    assert torch.equal(images[0], images[1])
    assert images[0].shape != images[2].shape or not torch.equal(images[0], images[2])


@pytest.mark.parametrize("bundle", [HIPPOCAMPUS, OCT])
def test_more_cases_leave_the_first_ones_as_they_are(bundle, tmp_path):
    few, many = (make_phantom(bundle, tmp_path / str(count), cases=count) for count in (3, 4))
    assert torch.equal(load(cases(few)[1]["label"]), load(cases(many)[1]["label"]))


@pytest.mark.parametrize(
    ("bundle", "left", "right"),
    [("brain_mri_scse_segmentation", "L ", "R "), ("whole_body_ct_scse_segmentation", "left ", "right ")],
)
def test_left_structures_have_smaller_x_than_right_ones(bundle, left, right):
    labels = PHANTOMS[bundle].labels
    pairs = [(name, right + name.removeprefix(left)) for name in labels if name.startswith(left)]
    assert len(pairs) == {"L ": 12, "left ": 3}[left]
    for seed in range(3):
        _, label = next(PHANTOMS[bundle].draw(np.random.RandomState(seed)))
        for pair in pairs:
            x_left, x_right = ((label[0] == labels.index(name)).nonzero()[:, 0].float().mean() for name in pair)
            assert x_left + 5 < x_right, pair


def test_organs_have_the_hounsfield_units_of_their_tissue():
    phantom = PHANTOMS["whole_body_ct_scse_segmentation"]
    image, label = next(phantom.draw(np.random.RandomState(0)))
    assert image.dtype == torch.int16
    means = {name: image[label == value].float().mean().item() for value, name in enumerate(phantom.labels)}
    assert means["trachea"] < means["left lung"] < -600
    assert all(20 < means[name] < 80 for name in ("liver", "spleen", "right kidney", "left psoas"))


def test_the_layers_of_a_retina_lie_in_order_in_every_column():
    for image, label in PHANTOMS[OCT].draw(np.random.RandomState(0)):
        assert image.dtype == torch.uint8
        assert image.shape == (1, 256, 160)
        for column in label[0]:
            layers = column[column != PHANTOMS[OCT].labels.index("fluid")].int()
            assert (layers.diff() >= 0).all()
            assert set(range(9)) == set(layers.tolist()) | ({3, 5} if len(layers) < len(column) else set())


def test_subjects_with_several_scans_are_not_split(tmp_path):
    folder = make_phantom(OCT, tmp_path, cases=10)
    names = {section: [case_name(case["image"]) for case in cases(folder, section)] for section in SECTIONS}
    assert names["training"][:3] == ["S01_b00", "S01_b01", "S02_b00"]
    assert names["validation"] == ["S05_b00", "S05_b01"]


def test_an_existing_data_set_is_not_overwritten(tmp_path):
    make_phantom(HIPPOCAMPUS, tmp_path, cases=2)
    with pytest.raises(DataError, match="holds a data set already"):
        make_phantom(HIPPOCAMPUS, tmp_path, cases=2)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"(?s)file/below.*cannot be written"):
        make_phantom(HIPPOCAMPUS, tmp_path / "file" / "below", cases=2)


@pytest.mark.parametrize(
    ("bundle", "options", "message"),
    [
        ("hippocampus", {}, HIPPOCAMPUS),
        (HIPPOCAMPUS, {"cases": 1}, "at least 2"),
        (OCT, {"cases": 2}, "2 scans each"),
        (HIPPOCAMPUS, {"seed": -1}, "seed=-1"),
    ],
)
def test_an_unknown_bundle_too_few_cases_or_a_negative_seed_are_refused(tmp_path, bundle, options, message):
    with pytest.raises(ConfigError, match=message):
        make_phantom(bundle, tmp_path, **options)
