# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_attn.data import case_name, case_names, cases, common_root, find_images, locate, training_cases
from monai_attn.errors import DataError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def listing(folder: Path, **sections: list) -> Path:
    """Write a dataset.json and every file that it lists."""
    for item in (item for items in sections.values() for item in items):
        for path in item.values() if isinstance(item, dict) else [item]:
            touch(folder, *([path] if isinstance(path, str) else path))
    (folder / "dataset.json").write_text(json.dumps(sections))
    return folder


def pairs(*numbers: int) -> list[dict[str, str]]:
    return [{"image": f"./images/c{n:03}.nii.gz", "label": f"./labels/c{n:03}.nii.gz"} for n in numbers]


def two_folders(folder: Path, number: int, images: str = "images", labels: str = "labels") -> Path:
    numbers = range(number)
    return touch(folder, *(f"{images}/c{n:03}.nii.gz" for n in numbers), *(f"{labels}/c{n:03}.nii" for n in numbers))


def names(items: list[dict[str, str]], key: str = "image") -> list[str]:
    return [case_name(item[key]) for item in items]


def refused(words: str, function, *arguments: object) -> str:
    """Assert that a function refuses with all of the words; return what it refuses."""
    with pytest.raises(DataError, match=words) as caught:
        function(*arguments)
    return caught.value.what


def test_the_name_of_a_case_is_the_file_name_without_its_ending_and_with_its_folder_where_two_share_it():
    paths = ["a.b.c.nii.gz", "scan.NII.GZ", Path("x") / "y.nrrd", "notes.txt", "series", "dir.nii.gz/scan.mha"]
    assert [case_name(path) for path in paths] == ["a.b.c", "scan", "y", "notes.txt", "series", "scan"]
    assert case_names(["/d/a/t1.nii", "/d/t2.nii"]) == {"/d/a/t1.nii": "t1", "/d/t2.nii": "t2"}
    assert case_names(["/d/a/t1.nii", "/d/b/t1.nii.gz"]) == {"/d/a/t1.nii": "a_t1", "/d/b/t1.nii.gz": "b_t1"}
    paths = ["/d/a/b/t.nii.gz", "/d/a_b/t.nii.gz", "/d/c/t.nii", "/d/c/t.nii.gz", "/d/t.nii"]
    names = case_names(paths)
    assert len({*names.values()}) == len(paths)
    assert names == case_names(paths[::-1])
    assert (names["/d/a_b/t.nii.gz"], names["/d/t.nii"]) == ("a_b_t_54eb4649", "t")


@pytest.mark.parametrize("folders", [("images", "labels"), ("imagesTr", "labelsTr")])
def test_folders_are_paired_by_name_to_absolute_paths(tmp_path, monkeypatch, folders):
    two_folders(tmp_path / "set", 10, *folders)
    touch(tmp_path / "set", f"{folders[0]}/.DS_Store", f"{folders[0]}/._c000.nii.gz", f"{folders[1]}/readme.txt")
    monkeypatch.chdir(tmp_path)
    found = cases("set") + cases("set", "validation")
    assert sorted(names(found)) == sorted(names(found, "label")) == [f"c{n:03}" for n in range(10)]
    for item in found:
        assert item.keys() == {"image", "label"}
        assert names([item]) == names([item], "label")
        assert all(Path(path).is_absolute() and Path(path).is_file() for path in item.values())


@pytest.mark.parametrize(
    ("removed", "words", "what"),
    [
        (["labels/c002.nii"], "there is no label named 'c002'", "images/c002.nii.gz"),
        (["images/c002.nii.gz"], "there is no image named 'c002'", "labels/c002.nii"),
        ([f"labels/c00{n}.nii" for n in (1, 2, 3)], r"named 'c001' \(and 2 more: c002, c003\)", "images/c001.nii.gz"),
    ],
)
def test_a_case_without_its_partner_is_named_instead_of_shifting_all_others(tmp_path, removed, words, what):
    two_folders(tmp_path, 5)
    for path in removed:
        (tmp_path / path).unlink()
    assert refused(words, cases, tmp_path) == str(tmp_path / what)
    touch(two_folders(tmp_path / "twice", 2), "labels/c001.png")
    words = r"case 'c001' is also in .*c001\.nii\b"
    assert refused(words, cases, tmp_path / "twice") == str(tmp_path / "twice" / "labels/c001.png")


@pytest.mark.parametrize(("number", "held_out"), [(5, 1), (40, 8)])
def test_the_validation_split_is_a_fifth_disjoint_complete_random_and_the_same_every_time(tmp_path, number, held_out):
    listing(tmp_path, training=pairs(*range(number)))
    training, validation = names(cases(tmp_path)), names(cases(tmp_path, "validation"))
    assert len(validation) == held_out
    assert sorted(training + validation) == [f"c{n:03}" for n in range(number)]
    assert (training, validation) == (names(cases(tmp_path)), names(cases(tmp_path, "validation")))
    assert number < 40 or set(validation) != {f"c{n:03}" for n in range(number - held_out, number)}
    assert names(find_images(tmp_path)) == validation


def test_listed_sections_are_followed(tmp_path):
    several = {"image": ["images/a_t1.nii", "images/a_t2.nii"], "label": "labels/a_seg.nii"}
    listing(tmp_path, training=[several], validation=pairs(9, 8), test=["./images/t1.nii", "images/t2.nii"])
    assert [item["image"] for item in cases(tmp_path)] == [[str(tmp_path / path) for path in several["image"]]]
    assert names(cases(tmp_path, "validation")) == ["c009", "c008"]
    assert cases(tmp_path, "test") == find_images(tmp_path)
    assert cases(tmp_path, "test") == [{"image": str(tmp_path / f"images/t{n}.nii")} for n in (1, 2)]
    listing(tmp_path, training=pairs(1), validation=pairs(2))  # without test cases those to validate on
    assert find_images(tmp_path) == [{"image": str(tmp_path / "images/c002.nii.gz")}]


def test_a_listed_label_named_after_another_case_or_a_file_that_is_not_there_raises(tmp_path):
    mixed = pairs(1, 2, 3)
    mixed[0]["label"], mixed[1]["label"] = mixed[1]["label"], mixed[0]["label"]
    words = r"pairs it with .*c001\.nii\.gz, but it is named after another"
    assert refused(words, cases, listing(tmp_path, training=mixed)) == str(tmp_path / "labels/c002.nii.gz")
    for path in ("labels/c003.nii.gz", "images/c001.nii.gz"):
        (tmp_path / path).unlink()
        assert refused("but it is not there", cases, tmp_path) == str(tmp_path / path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{'training': []}", "not valid JSON"),
        (b"\xff\xfe\x00\x81", "not valid JSON"),
        (b"[]", "it holds a list"),
        (b"{}", r"no cases for 'training' \(found: none\)"),
        (b'{"training": [{"label": "dataset.json"}]}', "has no 'image'"),
        (b'{"training": [{"image": "../a.nii", "label": "dataset.json"}]}', "leads out of that folder"),
        (b'{"training": [{"image": ["dataset.json", "images/../../a.nii"]}]}', "leads out of that folder"),
        (b'{"training": [{"image": "dataset.json", "mask": "../a.nii"}]}', "leads out of that folder"),
        (b'{"test": ["../a.nii"]}', "leads out of that folder"),
    ],
)
def test_a_listing_that_cannot_be_meant_is_refused(tmp_path, content, words):
    (tmp_path / "dataset.json").write_bytes(content)
    refused(words, cases, tmp_path)


def test_an_absolute_path_may_lead_anywhere_and_a_relative_one_out_and_in_again(tmp_path):
    touch(tmp_path, "scan.nii", "data/scan.nii")
    entry = {"image": str(tmp_path / "scan.nii"), "label": "images/../scan.nii", "age": 7}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"test": [entry]}))
    (case,) = cases(tmp_path / "data", "test")
    assert (case["image"], case["label"]) == (str(tmp_path / "scan.nii"), str(tmp_path / "data" / "scan.nii"))


def test_where_there_are_no_or_too_few_cases_it_is_told_what_there_is(tmp_path):
    touch(tmp_path, "in/notes.txt", "in/table.csv")
    refused(r"no dataset\.json or dataset\.csv, .* holds: notes\.txt, table\.csv", cases, tmp_path / "in")
    refused(r"no image \(\.nii\.gz, .*\); it holds: notes\.txt, table\.csv", find_images, tmp_path / "in")
    refused("there is no such folder", cases, tmp_path / "nowhere")
    refused("no such file or folder", find_images, tmp_path / "nowhere.nii")
    refused(r"no cases for 'test' \(found: 2 training\)", cases, two_folders(tmp_path, 2), "test")
    refused("it has 2 cases for training, and at least 3 are needed", cases, tmp_path, "validation")
    assert len(cases(two_folders(tmp_path, 3), "validation")) == 1


def save_labels(folder: Path, *values: float) -> Path:
    """Write a data set whose label maps have these values."""
    listing(folder, training=pairs(*range(len(values))), validation=pairs(99))
    for index, value in enumerate(values):
        label = nibabel.Nifti1Image(np.full((2, 2, 2), value, np.float32), np.eye(4))
        nibabel.save(label, folder / f"labels/c{index:03}.nii.gz")
    return folder


def test_the_list_of_a_data_set_is_not_its_folder(tmp_path):
    with pytest.raises(DataError, match=f"give its folder, {tmp_path}"):
        cases(tmp_path / "dataset.json")


def test_labels_are_read_until_one_is_not_empty(tmp_path):
    save_labels(tmp_path, 0, 1, 1)
    (tmp_path / "labels/c002.nii.gz").write_text("damaged")
    assert training_cases(tmp_path) == cases(tmp_path)
    (tmp_path / "labels/c000.nii.gz").write_text("damaged")
    assert refused("neither gzip", training_cases, tmp_path) == str(tmp_path / "labels/c000.nii.gz")


def test_there_is_nothing_to_learn_from_empty_labels_or_none(tmp_path):
    refused("labels of all its 3 cases for training are empty", training_cases, save_labels(tmp_path, 0, 0, 0))
    lonely = [{"image": "images/c002.nii.gz"}, {"image": "images/c003.nii.gz"}]
    words = "2 of its 3 cases for training have no label: c002, c003"
    refused(words, training_cases, listing(tmp_path, training=pairs(1) + lonely, validation=pairs(4)))


def test_images_are_found_in_order_at_any_depth_and_a_series_is_one(tmp_path):
    touch(tmp_path, "b.nii.gz", "p1/day/1/a.PNG", ".hidden.nii", "notes.txt", "series/1.dcm", "series/preview.png")
    found = [str(Path(item["image"]).relative_to(tmp_path)) for item in find_images(tmp_path)]
    assert found == ["b.nii.gz", "p1/day/1/a.PNG", "series"]
    for one in ("b.nii.gz", "series"):
        assert find_images(tmp_path / one) == [{"image": str(tmp_path / one)}]
    channels = [tmp_path / "b.nii.gz", tmp_path / "p1/day/1/a.PNG"]
    assert find_images(channels) == [{"image": [str(path) for path in channels]}]
    assert refused("it holds 3 images where one is expected", find_images, [tmp_path, tmp_path]) == str(tmp_path)


def test_the_common_root_is_the_deepest_folder_above_all_images(monkeypatch, tmp_path):
    several = [["/d/ab/1.nii", "/d/ab/2.nii"], ["/d/ac/1.nii", "/d/ac/2.nii"]]
    assert common_root([{"image": image} for image in several]) == "/d"
    assert common_root([{"image": "/d/a/1.nii"}]) == "/d/a"
    assert common_root([]) == ""
    monkeypatch.chdir(tmp_path)
    assert common_root([{"image": "a/1.nii"}, {"image": Path("b/1.nii")}]) == str(tmp_path)


def test_locate_gives_the_first_folder_that_exists_and_else_the_last_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(touch(tmp_path, "file", "real/scan.nii")))
    assert locate("file", "other") == str(tmp_path / "other")
    assert locate("real", "other") == str(tmp_path / "real")
    monkeypatch.delenv("MONAI_DATA_DIRECTORY")
    monkeypatch.chdir(tmp_path)
    assert locate("real") == str(Path("data") / "real")


def test_the_hippocampus_data_set_has_161_training_and_40_validation_cases(real_data):
    training, validation = cases(real_data("hippocampus")), cases(real_data("hippocampus"), "validation")
    assert (len(training), len(validation)) == (161, 40)
    assert not set(names(training)) & set(names(validation))
    assert names(training) == names(training, "label")
