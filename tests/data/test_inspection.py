# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_attn.data.inspection import CaseReport, check_bundle, inspect_cases
from monai_attn.data.phantom import make_phantom
from monai_attn.errors import ConfigError, DataError
from monai_attn.transforms import SafeChannelFirstd, SafeLoadImaged

BUNDLES = Path(__file__).parents[2] / "bundles"
HIPPOCAMPUS = str(BUNDLES / "hippocampus_mri_scse_segmentation")
LUNGS = str(BUNDLES / "lung_ct_focusnet_segmentation")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_phantom("hippocampus_mri_scse_segmentation", tmp_path / "data", cases=5)


def change(path: Path, voxels: np.ndarray | float) -> None:
    """Give a file other voxels."""
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.broadcast_to(voxels, image.shape).astype(np.float32), image.affine), path)


def case(folder: Path, section: str = "training") -> dict[str, Path]:
    item = json.loads((folder / "dataset.json").read_text())[section][0]
    return {key: folder / path for key, path in item.items()}


def lines_and_error(*arguments: object, **options: object) -> tuple[list[str], DataError]:
    lines: list[str] = []
    with pytest.raises(DataError) as caught:
        lines.extend(check_bundle(*arguments, **options))
    return lines, caught.value


def test_a_good_data_set_is_a_table_with_a_row_for_every_case(data):
    head, *rows, summary = check_bundle(HIPPOCAMPUS, dataset_dir=str(data))
    assert head.split() == ["case", "voxels", "mm", "labels"]
    assert len(rows) == 5
    for row in rows:
        name, *columns = row.split()
        size = nibabel.load(data / "images" / name).shape
        assert " ".join(columns) == f"{size[0]} x {size[1]} x {size[2]} 1 x 1 x 1 0-2 ok"
    assert summary == "5 cases: 5 can be used, 0 cannot; 0 with warnings"


def test_every_bad_case_is_in_the_table_with_its_reason_and_the_error_names_them(data):
    bad, odd = case(data), case(data, "validation")
    bad["image"].write_bytes(bad["image"].read_bytes()[:500])
    change(odd["label"], 0)
    lines, error = lines_and_error(HIPPOCAMPUS, dataset_dir=str(data))
    row = next(index for index, line in enumerate(lines) if line.startswith(bad["image"].name))
    assert lines[row].split()[1:] == ["-", "-", "-", "cannot", "be", "used"]
    assert lines[row + 1] == f"    cannot use {bad['image']}"
    assert lines[row + 2].startswith("      problem: it is damaged")
    warned = next(index for index, line in enumerate(lines) if line.endswith("warning"))
    assert lines[warned + 1] == f"    {odd['label']}: the label is empty"
    assert lines[-1] == "5 cases: 4 can be used, 1 cannot; 1 with warnings"
    assert (error.what, error.problem) == (str(data), f"1 of 5 cases: {bad['image'].name}")


def test_training_labels_that_are_all_empty_are_an_error(data):
    for path in (data / "labels").iterdir():
        change(path, 0)
    assert "all its 4 cases for training are empty" in lines_and_error(HIPPOCAMPUS, dataset_dir=str(data))[1].problem
    assert len(list(check_bundle(HIPPOCAMPUS, dataset_dir=str(data), sections=["validation"]))) == 4


def test_the_rules_are_those_of_the_bundle_with_its_overrides(data):
    lines, _ = lines_and_error(HIPPOCAMPUS, dataset_dir=str(data), overrides=["structures=['hippocampus']"])
    assert any("the values 2, expected 0, 1" in line for line in lines)
    lines, _ = lines_and_error(HIPPOCAMPUS, dataset_dir=str(data), overrides=["network_def#in_channels=2"])
    assert any("it is 3D, 1 channel, expected 3D, 2 channels" in line for line in lines)


def test_images_are_checked_as_for_inference(data):
    change(case(data)["image"], np.nan)
    images = sorted((data / "images").iterdir())
    assert len(list(check_bundle(HIPPOCAMPUS, images=[str(images[-1])]))) == 3
    _, error = lines_and_error(HIPPOCAMPUS, images=[str(data / "images")])
    assert error.problem == f"1 of 5 cases: {case(data)['image'].name}"
    lines, _ = lines_and_error(HIPPOCAMPUS, images=[str(path) for path in images[:2]])  # channels of one image
    assert sum("cannot be used" in line for line in lines) == 1


def test_another_configuration_has_other_rules(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.random.rand(8, 8, 8).astype(np.float32), np.eye(4)), tmp_path / "ct.nii.gz")
    ct = [str(tmp_path / "ct.nii.gz")]
    lines, _ = lines_and_error(LUNGS, images=ct)
    assert any("it is 3D, 1 channel (size 8 x 8 x 8), expected 2D, 1 channel" in line for line in lines)
    assert "8 x 8 x 8" in list(check_bundle(LUNGS, images=ct, configs=["inference", "inference_volume"]))[1]


def test_the_data_set_of_the_bundle_is_looked_at_by_default(data, monkeypatch):
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(data.parent))
    data.rename(data.parent / "hippocampus")
    assert len(list(check_bundle(HIPPOCAMPUS))) == 7


def test_a_bundle_is_found_by_its_name_and_others_are_listed(data, monkeypatch):
    monkeypatch.chdir(BUNDLES.parent)
    assert len(list(check_bundle("hippocampus_mri_scse_segmentation", dataset_dir=str(data)))) == 7
    with pytest.raises(ConfigError, match="hippocampus_mri_egcnn_segmentation, hippocampus_mri_scse_segmentation"):
        list(check_bundle("hippocampus", dataset_dir=str(data)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"configs": ["training"]}, "it has: .*inference.*train"),
        ({"overrides": ["structure=['a']"]}, "did you mean --structures"),
        ({"overrides": ["structures"]}, "KEY=VALUE"),
        ({"configs": ["metadata"]}, "no component"),
    ],
)
def test_what_the_bundle_does_not_have_is_refused(data, options, words):
    with pytest.raises(ConfigError, match=words):
        list(check_bundle(HIPPOCAMPUS, images=[str(data / "images")], **options))


def test_a_data_set_without_cases_is_refused_at_once(tmp_path):
    with pytest.raises(DataError, match="holds: nothing"):
        next(check_bundle(HIPPOCAMPUS, dataset_dir=str(tmp_path)))


def test_reports_of_pictures_have_no_spacing_and_names_keep_folders_apart(tmp_path):
    items = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)).save(tmp_path / folder / "t1.png")
        items.append({"image": str(tmp_path / folder / "t1.png")})
    reports = list(inspect_cases([SafeLoadImaged("image"), SafeChannelFirstd("image")], items))
    assert reports == [CaseReport("a/t1.png", (5, 4)), CaseReport("b/t1.png", (5, 4))]


def test_the_log_is_left_as_it_was(data, caplog):
    change(case(data)["label"], 0)
    logger = logging.getLogger("monai_attn")
    before = (logger.propagate, list(logger.handlers))
    assert any("empty" in line for line in check_bundle(HIPPOCAMPUS, dataset_dir=str(data)))
    assert caplog.records == []
    assert (logger.propagate, logger.handlers) == before
