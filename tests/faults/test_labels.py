# SPDX-License-Identifier: Apache-2.0
"""Labels that are missing, lie beside their images, or hold what is no class."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_attn.data import cases

fault = pytest.mark.fault


@fault(43)
def test_a_label_of_another_shape(lab, spoil_label):
    data, image, label = spoil_label(lambda voxels: voxels[1:])
    shape = nibabel.load(image).shape
    lab.train(data).refused(image, label, shape, (shape[0] - 1, *shape[1:]))


@fault(44)
def test_a_label_of_another_spacing(lab, spoil_label):
    data, image, label = spoil_label(affine=lambda affine: affine @ np.diag([1, 1, 2, 1]))
    lab.train(data).refused(image, label, "its spacing differs", "1 x 1 x 2 mm")


@fault(45)
def test_a_label_that_is_shifted(lab, spoil_label):
    data, image, label = spoil_label(affine=lambda affine: affine + np.eye(4, k=3) * 30)
    lab.train(data).refused(image, label, "its origin differs", "30.0 voxels")


@fault(45)
def test_a_label_that_is_shifted_by_less_than_half_a_voxel(lab, spoil_label):
    data, _, _ = spoil_label(affine=lambda affine: affine + np.eye(4, k=3) * 0.3)
    lab.train(data).finished()


@fault(46)
def test_a_label_that_is_flipped_in_its_header(lab, spoil_label):
    data, image, label = spoil_label(affine=lambda affine: affine @ np.diag([-1, 1, 1, 1]))
    lab.train(data).refused(image, label, "its direction differs", "axes LAS")


@fault(47)
def test_a_label_that_is_not_there(lab):
    data = lab.dataset()
    label = Path(cases(data)[1]["label"])
    label.unlink()
    lab.train(data).refused(label, "is not there")
    (data / "dataset.json").unlink()  # then files are paired by name
    lab.train(data).refused(label.name.removesuffix(".nii.gz"), "there is no label named")


@fault(47)
def test_labels_that_are_listed_with_other_images(lab):
    data = lab.dataset()
    listing = json.loads((data / "dataset.json").read_text())
    first, second = listing["training"][:2]
    first["label"], second["label"] = second["label"], first["label"]
    (data / "dataset.json").write_text(json.dumps(listing))
    lab.train(data).refused(Path(second["label"]).name, "named after another case")


@fault(48)
def test_images_and_labels_that_are_swapped(lab):
    data = lab.dataset()
    (data / "images").rename(data / "other")
    (data / "labels").rename(data / "images")
    (data / "other").rename(data / "labels")
    lab.train(data).refused(data / "labels", "it looks like an image", "not swapped")


@fault(49)
@pytest.mark.parametrize("value", [3, 255, -1])
def test_a_value_that_is_no_structure(lab, spoil_label, value):
    data, _, label = spoil_label(lambda voxels: np.where(voxels == 2, value, voxels.astype(np.int16)))
    lab.train(data).refused(label, f"it has the values {value}, expected 0, 1, 2", f"{{{value}: 2}}")


@fault(50)
def test_values_that_are_not_whole(lab, spoil_label):
    data, _, label = spoil_label(lambda voxels: (voxels * 0.996).astype(np.float32))
    lab.train(data).refused(label, "0.996", "as integers", "nearest neighbour")


@fault(51)
def test_a_label_that_is_no_number(lab, spoil_label):
    data, _, label = spoil_label(lambda voxels: np.where(voxels == 2, np.nan, voxels).astype(np.float32))
    lab.train(data).refused(label, "nan", "repair the label")


@fault(52)
def test_a_label_with_a_volume_for_each_class(lab, spoil_label):
    data, _, label = spoil_label(lambda voxels: np.stack([voxels == value for value in range(3)], -1).astype(np.uint8))
    lab.train(data).refused(label, "one-hot?", "argmax")


@fault(53)
def test_labels_that_are_all_empty(lab):
    data = lab.dataset()
    for case in cases(data):
        lab.respell(case["label"], np.zeros_like)
    lab.train(data).refused(data, "are empty")


@fault(53)
def test_a_label_that_is_empty(lab, spoil_label):
    data, _, label = spoil_label(np.zeros_like)
    lab.train(data).finished().warned(label, "the label is empty")


@fault(58)
def test_nothing_to_find_and_nothing_found(lab):
    data = lab.dataset()
    listing = json.loads((data / "dataset.json").read_text())
    listing["validation"] = listing["training"][:3]
    (data / "dataset.json").write_text(json.dumps(listing))
    first, second, _ = cases(data, "validation")
    lab.respell(first["label"], np.zeros_like)
    lab.respell(first["image"], lambda voxels: np.arange(voxels.size, dtype=np.float32).reshape(voxels.shape) % 2)
    lab.respell(second["label"], lambda voxels: np.where(voxels == 2, 0, voxels))
    attempt = lab.evaluate(data).finished()
    with open(attempt.output / "val_mean_dice_raw.csv") as file:
        rows = list(csv.DictReader(file))
    with open(attempt.output / "val_mean_dice_summary.csv") as file:
        summary = {row["class"]: row for row in csv.DictReader(file)}
    assert np.isnan([float(rows[0]["anterior"]), float(rows[0]["posterior"]), float(rows[1]["posterior"])]).all()
    anterior = [float(row["anterior"]) for row in rows[1:]]
    assert float(summary["anterior"]["mean"]) == pytest.approx(np.mean(anterior), abs=1e-4)
    assert [float(summary[name]["nans"]) for name in ("anterior", "posterior")] == [1, 2]


@fault(59)
def test_too_few_cases_to_set_some_apart(lab):
    data = lab.dataset()
    listing = json.loads((data / "dataset.json").read_text())
    listing["training"] = listing["training"][:2]
    listing.pop("validation", None)
    (data / "dataset.json").write_text(json.dumps(listing))
    lab.train(data).refused(data, "2 cases for training, and at least 3")
