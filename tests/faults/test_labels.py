# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_attn.data import cases

from ..conftest import read_csv

fault = pytest.mark.fault


@fault(43)
def test_a_label_of_another_shape(lab, spoil_label):
    data, image, label = spoil_label(lambda voxels: voxels[1:])
    shape = nibabel.load(image).shape
    lab.train(data).refused(image, label, shape, (shape[0] - 1, *shape[1:]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda a: a @ np.diag([1, 1, 2, 1]), ("spacing differs", "1 x 1 x 2 mm"), marks=fault(44)),
        pytest.param(lambda a: a + np.eye(4, k=3) * 30, ("origin differs", "30.0 voxels"), marks=fault(45)),
        pytest.param(lambda a: a + np.eye(4, k=3) * 0.3, (), marks=fault(45)),  # less than half a voxel
        pytest.param(lambda a: a @ np.diag([-1, 1, 1, 1]), ("direction differs", "axes LAS"), marks=fault(46)),
    ],
    ids=["spacing", "shifted", "hardly shifted", "flipped"],
)
def test_a_label_in_another_place(lab, spoil_label, change, words):
    data, image, label = spoil_label(affine=change)
    attempt = lab.train(data)
    if words:
        attempt.refused(image, label, *words)
    else:
        attempt.finished()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            lambda v: np.where(v == 2, -1, v.astype(np.int16)),
            ("it has the values -1, expected 0, 1, 2", "{-1: 2}"),
            marks=fault(49),
        ),
        pytest.param(lambda v: (v * 0.996).astype(np.float32), ("0.996", "as integers"), marks=fault(50)),
        pytest.param(lambda v: np.where(v == 2, np.nan, v).astype("f4"), ("nan", "repair the label"), marks=fault(51)),
        pytest.param(
            lambda v: np.stack([v == value for value in range(3)], -1).astype(np.uint8),
            ("one-hot?", "argmax"),
            marks=fault(52),
        ),
    ],
    ids=["no structure", "not whole", "no number", "one-hot"],
)
def test_values_that_are_no_classes(lab, spoil_label, change, words):
    data, _, label = spoil_label(change)
    lab.train(data).refused(label, *words)


@fault(47)
def test_a_label_that_is_not_there_or_of_another_image(lab):
    data = lab.dataset()
    listing = json.loads((data / "dataset.json").read_text())
    first, second = listing["training"][:2]
    first["label"], second["label"] = second["label"], first["label"]
    (data / "dataset.json").write_text(json.dumps(listing))
    lab.train(data).refused(Path(second["label"]).name, "named after another case")
    data = lab.dataset()
    label = Path(cases(data)[1]["label"])
    label.unlink()
    lab.train(data).refused(label, "is not there")
    (data / "dataset.json").unlink()  # then files are paired by name
    lab.train(data).refused(label.name.removesuffix(".nii.gz"), "there is no label named")


@fault(48)
def test_images_and_labels_that_are_swapped(lab):
    data = lab.dataset()
    for old, new in (("images", "other"), ("labels", "images"), ("other", "labels")):
        (data / old).rename(data / new)
    lab.train(data).refused(data / "labels", "it looks like an image", "not swapped")


@fault(53)
def test_one_label_or_all_that_are_empty(lab):
    data = lab.dataset()
    empty = lab.respell(cases(data)[1]["label"], np.zeros_like)
    lab.train(data).finished().warned(empty, "the label is empty")
    for case in cases(data):
        lab.respell(case["label"], np.zeros_like)
    lab.train(data).refused(data, "are empty")


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
    rows = read_csv(attempt.output / "val_mean_dice_raw.csv")
    summary = {row["class"]: row for row in read_csv(attempt.output / "val_mean_dice_summary.csv")}
    assert np.isnan([float(rows[0]["anterior"]), float(rows[0]["posterior"]), float(rows[1]["posterior"])]).all()
    anterior = [float(row["anterior"]) for row in rows[1:]]
    assert float(summary["anterior"]["mean"]) == pytest.approx(np.mean(anterior), abs=1e-4)
    assert [float(summary[name]["nans"]) for name in ("anterior", "posterior")] == [1, 2]


@fault(59)
def test_too_few_cases_to_set_some_apart(lab):
    data = lab.dataset()
    listing = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({"training": listing["training"][:2]}))
    lab.train(data).refused(data, "2 cases for training, and at least 3")
