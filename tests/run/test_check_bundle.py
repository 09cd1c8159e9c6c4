# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_attn.errors import ConfigError, DataError
from monai_attn.run.workflow import check_bundle

BUNDLES = Path(__file__).parents[2] / "bundles"
HIPPOCAMPUS = str(BUNDLES / "hippocampus_mri_scse_segmentation")
LUNGS = str(BUNDLES / "lung_ct_focusnet_segmentation")


@pytest.fixture
def data(phantom, tmp_path) -> Path:
    folder = Path(shutil.copytree(phantom("hippocampus_mri_scse_segmentation"), tmp_path / "hippocampus"))
    listing = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**listing, "training": listing["training"][:2]}))
    return folder


def failing(*arguments: object, **options: object) -> tuple[list[str], DataError]:
    lines: list[str] = []
    with pytest.raises(DataError) as caught:
        lines.extend(check_bundle(*arguments, **options))
    return lines, caught.value


def test_the_data_set_of_the_bundle_is_looked_at_by_default_by_the_rules_of_the_bundle(data, monkeypatch):
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(data.parent))
    _, *rows, summary = check_bundle(HIPPOCAMPUS)
    assert [row.split()[0] for row in rows] == ["phantom_000.nii.gz", "phantom_001.nii.gz", "phantom_005.nii.gz"]
    assert all(row.endswith("1 x 1 x 1           0-2           ok") for row in rows)
    assert summary == "3 cases: 3 can be used, 0 cannot; 0 with warnings"
    lines, _ = failing(HIPPOCAMPUS, sections=["validation"], overrides={"structures": ["hippocampus"]})
    assert any("the values 2, expected 0, 1" in line for line in lines)
    lines, _ = failing(HIPPOCAMPUS, sections=["validation"], overrides={"in_channels": 2})
    assert any("it is 3D, 1 channel, expected 3D, 2 channels" in line for line in lines)


def test_images_are_checked_as_for_inference(data):
    images = [str(data / "images" / f"phantom_00{number}.nii.gz") for number in (0, 5)]
    image = nibabel.load(images[0])
    nibabel.save(nibabel.Nifti1Image(np.full(image.shape, np.nan, np.float32), image.affine), images[0])
    assert len(list(check_bundle(HIPPOCAMPUS, images=images[1:]))) == 3
    assert failing(HIPPOCAMPUS, images=[str(data / "images")])[1].problem == "1 of 6 cases: phantom_000.nii.gz"
    assert len(failing(HIPPOCAMPUS, images=images)[0]) == 6  # two channels of one image, in a row and three below it


def test_another_configuration_has_other_rules(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.random.rand(8, 8, 8).astype(np.float32), np.eye(4)), tmp_path / "ct.nii.gz")
    ct = [str(tmp_path / "ct.nii.gz")]
    lines, _ = failing(LUNGS, images=ct)
    assert any("it is 3D, 1 channel (size 8 x 8 x 8), expected 2D, 1 channel" in line for line in lines)
    assert "8 x 8 x 8" in list(check_bundle(LUNGS, images=ct, configs=["inference", "inference_volume"]))[1]


@pytest.mark.parametrize(
    ("bundle", "options", "words"),
    [
        ("hippocampus", {}, "hippocampus_mri_egcnn_segmentation, hippocampus_mri_scse_segmentation"),
        (HIPPOCAMPUS, {"overrides": {"structure": 1}}, "did you mean"),
        (HIPPOCAMPUS, {"configs": ["metadata"]}, "no component"),
    ],
)
def test_what_there_is_not_is_refused(data, monkeypatch, bundle, options, words):
    monkeypatch.chdir(BUNDLES.parent)
    with pytest.raises(ConfigError, match=words):
        list(check_bundle(bundle, images=[str(data / "images")], **options))
