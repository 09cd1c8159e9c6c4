# SPDX-License-Identifier: Apache-2.0
"""Data sets of other people, on which bundles train with the options that the check prints."""

import ast
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_attn.data import cases
from monai_attn.errors import DataError
from monai_attn.run.workflow import check_bundle

from ..conftest import read_csv


def cut(path: str, start: tuple[int, ...], size: tuple[int, ...], target: Path) -> None:
    """Write a part of a volume."""
    image = nibabel.load(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(image.slicer[tuple(slice(a, a + b) for a, b in zip(start, size))], target)


def middle(path: str, size: tuple[int, ...]) -> tuple[int, ...]:
    """Where a part of this size begins, in the middle of all structures."""
    voxels = np.argwhere(np.asarray(nibabel.load(path).dataobj) > 0)
    return tuple(max(int(center) - length // 2, 0) for center, length in zip(voxels.mean(0), size))


def left_atrium(source: Path, folder: Path) -> None:
    items = []
    for number, case in enumerate(cases(source)[:4]):
        start = middle(case["label"], size := (40, 40, 32))
        items.append({key: f"{key}s/{number}.nii.gz" for key in ("image", "label")})
        for key, name in items[-1].items():
            cut(case[key], start, size, folder / name)
    labels = {"0": "background", "1": "left atrium"}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "training": items}))


def kidneys(source: Path, folder: Path) -> None:
    for number, case in enumerate(cases(source)[:4]):
        rows, columns = np.nonzero(np.asarray(Image.open(case["label"])))
        left, top = int(np.median(columns)) - 40, int(np.median(rows)) - 40
        for key, part in (("images", case["image"]), ("labels", case["label"])):
            (folder / key).mkdir(parents=True, exist_ok=True)
            picture = np.asarray(Image.open(part).crop((left, top, left + 96, top + 80)))
            picture = np.uint8([0, 128, 255])[picture] if key == "labels" else picture
            Image.fromarray(picture).save(folder / key / f"{number}.png")


def brats(source: Path, folder: Path) -> None:
    for number, case in enumerate([*cases(source), *cases(source, "validation")]):
        start = middle(case["label"], size := (40, 40, 32))
        cut(case["label"], start, size, folder / f"labelsTr/brats_{number}.nii.gz")
        for channel, path in enumerate(case["image"]):
            cut(path, start, size, folder / f"imagesTr/brats_{number}_{channel:04}.nii.gz")
    labels = {"background": 0, "necrosis": 1, "edema": 2, "non-enhancing": 3, "enhancing": 4}
    channels = {"0": "T1c", "1": "FLAIR"}
    content = {"channel_names": channels, "labels": labels, "numTraining": 4, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "make", "bundle", "expected"),
    [
        ("left_atrium", left_atrium, "hippocampus_mri_egcnn", {"structures": ["left atrium"]}),
        (
            "kits19_2d",
            kidneys,
            "retinal_oct_scse",
            {"label_map": {128: 1, 255: 2}, "structures": ["structure 1", "structure 2"]},
        ),
        ("brats2015", brats, "brats_mri_autofocus", {"in_channels": 2}),
    ],
)
def test_the_options_that_the_check_ends_with_train_evaluate_and_segment(
    source: str, make: Callable, bundle: str, expected: dict, real_data, bundle_on_phantom, tmp_path
):
    make(real_data(source), tmp_path / "data")
    own = bundle_on_phantom(f"{bundle}_segmentation")._replace(data=tmp_path / "data", output=tmp_path / "out")
    lines = []
    try:
        lines.extend(check_bundle(str(own.root), dataset_dir=str(own.data)))
    except DataError as error:
        lines.append(error.fix)
    words = shlex.split(lines[-1].removeprefix("add "))
    options = {key[2:]: ast.literal_eval(value) for key, value in zip(words[::2], words[1::2])}
    assert options == expected
    assert list(check_bundle(str(own.root), dataset_dir=str(own.data), overrides=options))[-1].startswith("4 cases: 4")
    own.run("train", output_dir=str(own.output), ckpt_dir=str(own.output), **options)
    own.run("train", "evaluate", output_dir=str(tmp_path / "evaluation"), ckpt_dir=str(own.output))
    (row,) = read_csv(tmp_path / "evaluation" / f"{own.metric}_raw.csv")
    assert {*row} >= {*options.get("structures", ())}
    scans = tmp_path / "scans"
    own.run("inference", input=str(own.data), output_dir=str(scans), checkpoint=str(own.weights))
    assert len(list(scans.rglob(f"*_seg{own.suffix}"))) == (4 if source == "kits19_2d" else 1)
