# SPDX-License-Identifier: Apache-2.0
import logging
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation

from monai_attn.data import median_frequency_weights
from monai_attn.data.checking import _fit_labels, check_cases
from monai_attn.errors import DataError

IMAGE = MetaTensor(torch.rand(1, 8, 9, 10), affine=torch.diag(torch.tensor([1.0, 1, 2.5, 1])))
TRAINING = [{"image": f"/data/{name}.nii", "label": "l.nii"} for name in ("a/t1", "b/t1")]


def load(case):
    name = Path(case["image"]).stem
    if name == "bad":
        logging.getLogger("monai_attn.data").warning("odd before it failed")
        raise DataError(case["image"], "it is empty", "copy it again")
    if name == "odd":
        logging.getLogger("monai_attn.transforms").warning("it has no contrast")
    label = torch.zeros(1, 8, 9, 10) if name == "empty" else torch.arange(720).reshape(1, 8, 9, 10).clamp(max=2)
    return {"image": IMAGE, "label": label}


def failing(sections):
    lines: list[str] = []
    with pytest.raises(DataError) as caught:
        lines.extend(check_cases([load], sections, "my data"))
    return lines, caught.value


def test_cases_are_rows_of_a_table_with_names_that_keep_folders_apart():
    head, *rows, summary = check_cases([load], {"training": TRAINING}, "my data")
    assert head.split() == ["case", "voxels", "mm", "labels"]
    assert [" ".join(row.split()) for row in rows] == [f"{name}/t1.nii 8 x 9 x 10 1 x 1 x 2.5 0-2 ok" for name in "ab"]
    assert summary == "2 cases: 2 can be used, 0 cannot; 0 with warnings"


def test_pictures_have_no_spacing_and_images_without_label_no_values():
    (_, row, _) = check_cases([lambda _: {"image": torch.rand(3, 4, 5)}], {"input": [{"image": "a.png"}]}, "my data")
    assert row.split() == ["a.png", "4", "x", "5", "-", "-", "ok"]


def test_every_bad_case_is_in_the_table_with_its_reason_and_the_error_names_them_and_the_log_is_as_it_was(caplog):
    logger = logging.getLogger("monai_attn")
    before = (logger.propagate, list(logger.handlers))
    lines, error = failing(
        {"training": TRAINING, "validation": [{"image": "/data/bad.nii"}, {"image": "/data/odd.nii"}]}
    )
    row = next(index for index, line in enumerate(lines) if line.startswith("bad.nii"))
    assert lines[row].split()[1:] == ["-", "-", "-", "cannot", "be", "used"]
    assert lines[row + 1 : row + 4] == [
        "    odd before it failed",
        "    cannot use /data/bad.nii",
        "      problem: it is empty",
    ]
    warned = next(index for index, line in enumerate(lines) if line.endswith("warning"))
    assert lines[warned + 1] == "    it has no contrast"
    assert lines[-1] == "4 cases: 3 can be used, 1 cannot; 1 with warnings"
    assert (error.what, error.problem) == ("my data", "1 of 4 cases: bad.nii")
    assert caplog.records == []
    assert (logger.propagate, logger.handlers) == before


def test_training_labels_that_are_all_empty_are_an_error():
    empty = [{"image": "/data/empty.nii"}]
    assert "all its 1 cases for training are empty" in failing({"training": empty, "validation": TRAINING})[1].problem
    assert len(list(check_cases([load], {"validation": empty}, "my data"))) == 3


ATRIUM = {"structures": ["a", "b"], "out_channels": 3}
BRATS = {"structures": ["a", "b", "c", "d"], "out_channels": 5, "regions": [[1, 2, 3, 4], [4]], "in_channels": 4}


@pytest.mark.parametrize(
    ("settings", "values", "found", "named", "options"),
    [
        (ATRIUM, range(3), {1, 2}, {}, {}),
        (ATRIUM, range(3), {1, 2}, {1: "A", 2: "B"}, {}),
        (ATRIUM, range(3), {1}, {}, {"structures": ["structure 1"]}),
        (ATRIUM, range(3), {1}, {1: "left atrium"}, {"structures": ["left atrium"]}),
        (ATRIUM, range(3), {2}, {}, {}),  # one that happens not to occur
        (ATRIUM, range(3), {1, 2, 4}, {}, {"label_map": {4: 3}, "structures": [f"structure {n}" for n in (1, 2, 3)]}),
        (ATRIUM, range(3), {128, 255}, {1: "x", 2: "$y"}, {"label_map": {128: 1, 255: 2}, "structures": ["x", "y"]}),
        (ATRIUM, range(3), {0.5, 1}, {}, {}),
        (ATRIUM, range(3), {*range(1, 200)}, {}, {}),
        (ATRIUM | {"ignore_index": 255}, [0, 1, 2, 255], {1, 2, 255}, {}, {}),
        (ATRIUM | {"ignore_index": 255}, [0, 1, 2, 255], {255}, {1: "x"}, {"label_map": {255: 1}, "structures": ["x"]}),
        (BRATS, range(5), {1}, {}, {"structures": ["structure 1"], "regions": [[1]], "region_names": ["structure 1"]}),
        (BRATS | {"region_values": [2, 4], "out_channels": 2}, [0, 1, 2, 4], {1, 2, 4}, {1: "a", 2: "b", 4: "d"}, {}),
        ({"structures": ["lesion"], "out_channels": 1}, [0, 1, 255], {255}, {}, {}),
        ({"structures": ["lesion"], "out_channels": 1}, [0, 1, 255], {1, 2}, {}, {"label_map": {2: 1}}),
    ],
)
def test_the_options_of_a_bundle_fit_the_values_of_labels(settings, values, found, named, options):
    assert _fit_labels(found, settings | {"values": [*values]}, named)[1] == options


def test_what_a_bundle_has_and_no_label_has_is_told():
    assert _fit_labels({1}, ATRIUM | {"values": [0, 1, 2]}, {})[0] == ["1 of 2 structures in no label: b"]
    assert _fit_labels({1}, BRATS | {"values": [*range(5)]}, {})[0][1] == "the regions [[1, 2, 3, 4], [4]] do not apply"


def test_weights_of_two_images_by_hand():
    # class 0: 3 + 2 of 8 pixels, class 1: 1 of the 4 pixels of the first image, class 2: 2 of the 4 of the second
    labels = [torch.tensor([[[0, 0], [0, 1]]]), torch.tensor([[[0, 0], [2, 2]]])]
    frequency = torch.tensor([5 / 8, 1 / 4, 2 / 4])
    assert torch.allclose(median_frequency_weights(labels, 3), frequency.median() / frequency)
    unmapped = [label * 5 for label in labels]
    assert torch.allclose(
        median_frequency_weights(unmapped, 3, label_map={5: 1, 10: 2}), frequency.median() / frequency
    )


def test_an_absent_class_gets_no_weight_and_a_warning():
    with pytest.warns(UserWarning, match=r"classes \[2\] occur in no label"):
        weights = median_frequency_weights([torch.tensor([[[0, 1]]])], 3)
    assert weights.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[[[0, -1]]]], "whole numbers from 0 to 2"),
        ([[[[0, 3]]]], "whole numbers from 0 to 2"),
        ([], "labels is empty"),
    ],
)
def test_no_labels_and_values_outside_the_classes_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        median_frequency_weights(list(map(torch.tensor, labels)), 3)


def test_slices_of_a_volume_are_images_of_their_own_and_files_are_read_in_ras_orientation(tmp_path):
    volume = MetaTensor(torch.zeros(1, 3, 4, 5), affine=torch.eye(4))
    volume[0, 0, 1, 1:3] = 1  # two pixels, each in a slice of its own across axis 2
    expected = median_frequency_weights(list(volume.as_tensor().unbind(3)), 2)
    assert torch.equal(median_frequency_weights([volume], 2, spatial_dim=2), expected)
    assert not torch.equal(median_frequency_weights([volume], 2), expected)
    turned = Orientation(axcodes="PIR")(volume)
    image = nibabel.Nifti1Image(turned[0].numpy().astype(np.uint8), turned.affine.numpy())
    nibabel.save(image, tmp_path / "label.nii.gz")
    assert torch.equal(median_frequency_weights([str(tmp_path / "label.nii.gz")], 2, spatial_dim=2), expected)
