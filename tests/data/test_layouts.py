# SPDX-License-Identifier: Apache-2.0
import json
import logging
from pathlib import Path

import pytest

from monai_attn.data import cases, find_images
from monai_attn.data.datalist import structure_names
from monai_attn.data.layouts import read_sections

from .test_datalist import listing, names, pairs, refused, touch


def paths(items, folder: Path, key: str = "image"):
    """The paths of cases, relative to the data set."""
    files = [item[key] if isinstance(item[key], list) else [item[key]] for item in items]
    return [" ".join(str(Path(file).relative_to(folder)) for file in group) for group in files]


def decathlon(folder: Path, numbers=range(5), **other) -> Path:
    items = [{"image": f"./imagesTr/c{n}.nii.gz", "label": f"./labelsTr/c{n}.nii.gz"} for n in numbers]
    return listing(folder, training=items, **other)


def test_decathlon(tmp_path):
    decathlon(tmp_path, test=["./imagesTs/t1.nii.gz", "./imagesTs/t2.nii.gz"])
    content = json.loads((tmp_path / "dataset.json").read_text())
    content |= {"name": "x", "labels": {"0": "background", "2": "b", "1": "a"}, "modality": {"0": "MRI"}, "tags": ["a"]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert len(cases(tmp_path)) == 4
    assert paths(cases(tmp_path, "test"), tmp_path) == ["imagesTs/t1.nii.gz", "imagesTs/t2.nii.gz"]
    assert structure_names(tmp_path) == {1: "a", 2: "b"}


def nnunet(folder: Path, channels: int = 2, ending: str = ".nii.gz") -> Path:
    files = [
        f"{where}/c{n}_{c:04}{ending}" for where in ("imagesTr", "imagesTs") for n in range(5) for c in range(channels)
    ]
    touch(folder, *files, *(f"labelsTr/c{n}{ending}" for n in range(5)))
    names = {str(channel): "MRI" for channel in range(channels)}
    labels = {"background": 0, "whole": 1, "core": 2}
    content = {"channel_names": names, "labels": labels, "numTraining": 5, "file_ending": ending}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def test_nnunet(tmp_path):
    touch(nnunet(tmp_path), "imagesTr/c9.png", "imagesTr/notes.txt")
    found = cases(tmp_path) + cases(tmp_path, "validation")
    assert sorted(paths(found, tmp_path)) == [f"imagesTr/c{n}_0000.nii.gz imagesTr/c{n}_0001.nii.gz" for n in range(5)]
    assert sorted(paths(found, tmp_path, "label")) == [f"labelsTr/c{n}.nii.gz" for n in range(5)]
    assert [item.keys() for item in cases(tmp_path, "test")] == [{"image"}] * 5
    assert find_images(tmp_path) == cases(tmp_path, "test")
    assert structure_names(tmp_path) == {1: "whole", 2: "core"}
    (tmp_path / "imagesTr/c3_0001.nii.gz").unlink()
    words = "its case 'c3' has 1 channels, and dataset.json names 2"
    assert refused(words, cases, tmp_path) == str(tmp_path / "imagesTr/c3_0000.nii.gz")
    assert len(cases(nnunet(tmp_path / "bmp", 1, ".bmp"))) == 4
    assert isinstance(cases(tmp_path / "bmp")[0]["image"], str)


def test_auto3dseg(tmp_path):
    folds = [item | {"fold": n % 3} for n, item in enumerate(pairs(*range(6)))]
    listing(tmp_path, training=[], testing=pairs(8))
    touch(tmp_path, *(path for item in pairs(*range(6)) for path in item.values()))
    (tmp_path / "dataset.json").write_text(json.dumps({"training": folds, "testing": pairs(8)}))
    assert names(cases(tmp_path, "validation")) == ["c000", "c003"]
    assert names(cases(tmp_path)) == ["c001", "c002", "c004", "c005"]
    assert cases(tmp_path)[0].keys() == {"image", "label"}
    assert names(cases(tmp_path, "test")) == ["c008"]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": folds, "validation": pairs(8)}))
    assert (len(cases(tmp_path)), names(cases(tmp_path, "validation"))) == (6, ["c008"])


def test_a_table(tmp_path):
    touch(tmp_path, *(f"{name}.nii" for name in ("a1", "a2", "b1", "b2", "a", "b", "c")))
    rows = [
        "\ufeffimage, Label,group,SECTION,age",
        "a1.nii;a2.nii,a.nii,p,,7",
        f"{tmp_path}/b1.nii; b2.nii,b.nii,q, validation,8",
    ]
    (tmp_path / "dataset.csv").write_text("\r\n".join([*rows, "c.nii,,,test,"]), encoding="utf-8")
    assert cases(tmp_path) == [
        {"image": [str(tmp_path / f"a{n}.nii") for n in (1, 2)], "label": str(tmp_path / "a.nii")}
    ]
    assert paths(cases(tmp_path, "validation"), tmp_path) == ["b1.nii b2.nii"]
    assert find_images(tmp_path) == cases(tmp_path, "test") == [{"image": str(tmp_path / "c.nii")}]
    assert find_images(tmp_path / "dataset.csv") == find_images(tmp_path)
    (tmp_path / "dataset.csv").write_text("image,section\nc.nii,val\n")
    refused("cases under 'val'; known are training, validation", cases, tmp_path)
    (tmp_path / "dataset.csv").write_text("file;label\nc.nii;a.nii\n")
    refused("a case has no 'image'", cases, tmp_path)


def brats(folder: Path, kinds=("flair", "seg", "t1", "t1ce", "t2")) -> Path:
    return touch(
        folder, *(f"{grade}/B_{n}/B_{n}_{kind}.nii.gz" for grade in ("HGG", "LGG") for n in "123" for kind in kinds)
    )


def test_a_folder_for_each_case(tmp_path):
    touch(brats(tmp_path), *(f"HGG/B_9/B_9_{kind}.nii.gz" for kind in ("flair", "t1", "t1ce", "t2")))
    found = cases(tmp_path) + cases(tmp_path, "validation")
    first = next(item for item in found if "HGG/B_1" in item["label"])
    assert len(found) == 6
    assert [Path(path).name for path in first["image"]] == [
        f"B_1_{kind}.nii.gz" for kind in ("t1", "t1ce", "t2", "flair")
    ]
    assert first["label"] == str(tmp_path / "HGG/B_1/B_1_seg.nii.gz")
    assert "HGG/B_9/" in cases(tmp_path, "test")[0]["image"][0]
    assert len(find_images(tmp_path)) == 7
    (tmp_path / "LGG/B_2/B_2_t2.nii.gz").unlink()
    assert refused("other cases have t1, t1ce, t2, flair and a label", cases, tmp_path) == str(tmp_path / "LGG/B_2")
    kits = touch(
        tmp_path / "kits", *(f"case_{n}/{name}.nii.gz" for n in range(3) for name in ("imaging", "segmentation"))
    )
    assert sorted(paths(cases(kits) + cases(kits, "validation"), kits)) == [
        f"case_{n}/imaging.nii.gz" for n in range(3)
    ]


def test_the_name_of_a_folder_is_not_taken_from_within_words(tmp_path):
    """Case 2 has a t2, and it is not the t1."""
    kinds = ("flair", "seg", "t1", "t1ce", "t2")
    touch(tmp_path, *(f"{case}/{kind}.nii.gz" for case in "1234" for kind in kinds))
    for item in cases(tmp_path) + cases(tmp_path, "validation"):
        assert [Path(path).name[:-7] for path in item["image"]] == ["t1", "t1ce", "t2", "flair"]
    touch(tmp_path, "2/t1.nii")
    refused("is of the same kind", cases, tmp_path)


def test_sites_may_name_their_cases_alike(tmp_path):
    files = [f"{site}/{kind}/001.nii.gz" for site in "ab" for kind in ("images", "labels")]
    touch(tmp_path, *files)
    items = [{"image": image, "label": label} for image, label in (files[:2], files[2:])]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items, "test": []}))
    assert [paths([item], tmp_path) for item in read_sections(tmp_path)["training"]] == [files[:1], files[2:3]]


@pytest.mark.parametrize("key", ["val", "train", "test_set"])
def test_cases_under_an_unknown_name_are_named_and_not_left_out(tmp_path, key):
    extra = {"val": pairs(8), "train": [{"image": "series"}], "test_set": ["images/c008.nii.gz"]}[key]
    words = f"cases under '{key}'; known are training, validation, test, testing"
    assert refused(words, cases, listing(tmp_path, training=pairs(1, 2, 3), **{key: extra})) == str(
        tmp_path / "dataset.json"
    )


def test_a_selection_of_the_training_cases_and_labels_without_images_are_no_sections(tmp_path):
    listing(
        tmp_path, training=pairs(1, 2), validation=pairs(3), training_small=pairs(2), labels_only=["labels/x.nii.gz"]
    )
    assert names(cases(tmp_path)) == ["c001", "c002"]
    refused("cases under 'training_small'", cases, listing(tmp_path, training=pairs(1, 2), training_small=pairs(2)))


def slices(folder: Path, patients: int, ending: str = "_slice{}") -> Path:
    stems = [f"p{patient}{ending.format(n)}" for patient in range(patients) for n in range(4)]
    return touch(folder, *(f"{where}/{stem}.png" for where in ("images", "labels") for stem in stems))


@pytest.mark.parametrize("ending", ["_slice{}", "-Slice-0{}", "_z{}", "_b0{}"])
def test_slices_of_a_patient_are_not_divided(tmp_path, ending, caplog):
    slices(tmp_path, 5, ending)
    training, validation = ({name[:2] for name in names(cases(tmp_path, part))} for part in ("training", "validation"))
    assert (len(training), len(validation), training & validation) == (4, 1, set())
    assert caplog.records == []


def test_groups_are_not_divided_and_too_few_are_told(tmp_path):
    items = [item | {"group": "abc"[n % 3]} for n, item in enumerate(pairs(*range(9)))]
    listing(tmp_path, training=pairs(*range(9)))
    (tmp_path / "dataset.json").write_text(json.dumps({"training": items}))
    held_out = [int(name[1:]) % 3 for name in names(cases(tmp_path, "validation"))]
    assert (len(held_out), len(set(held_out))) == (3, 1)
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [item for item in items if item["group"] != "c"]}))
    refused("it has 6 cases of 2 patients for training, and at least 3", cases, tmp_path, "validation")


def test_a_patient_in_two_sections_and_files_that_are_left_out_are_told_once(tmp_path, caplog):
    slices(tmp_path / "two", 2)  # too few patients to set one apart
    touch(tmp_path / "two", "images/notes.txt", "images/.hidden")
    listing(tmp_path / "listed", training=pairs(1, 2), validation=pairs(2))
    touch(tmp_path / "listed", "images/c009.nii.gz")
    with caplog.at_level(logging.WARNING):
        for name in ("two", "two", "listed"):
            cases(tmp_path / name)
            cases(tmp_path / name, "validation")
    told = [record.getMessage().removeprefix(str(tmp_path)) for record in caplog.records]
    assert told == [
        "/two/images: 1 left out, no images: notes.txt",
        "/two: patients in several sections, which flatters the scores: p1 (training, validation)",
        "/listed: 1 left out, not listed in dataset.json: images/c009.nii.gz",
        f"/listed: patients in several sections, which flatters the scores: {tmp_path}/listed/images/c002.nii.gz"
        " (training, validation)",
    ]


def test_labels_below_an_input_are_left_out_and_told(tmp_path, caplog):
    touch(
        tmp_path,
        "a/images/1.png",
        "a/labels/1.png",
        "imagesTr/2.nii",
        "labelsTr/2.nii",
        "b/labels/3.png",
        "c/s.nii",
        "c/s_seg.nii",
    )
    assert paths(find_images(tmp_path), tmp_path) == ["a/images/1.png", "c/s.nii", "imagesTr/2.nii"]
    assert "4 left out, labels or results: a/labels/1.png, b/labels/3.png, c/s_seg.nii …" in caplog.text
    assert paths(find_images(tmp_path / "a/labels"), tmp_path) == ["a/labels/1.png"]
