# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_attn.data import case_name, cases, common_root, find_images, locate, pair_by_name, training_cases
from monai_attn.errors import DataError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def listing(folder: Path, **sections: object) -> Path:
    """Write a dataset.json and every file that it lists."""
    for items in sections.values():
        for item in items:
            paths = item.values() if isinstance(item, dict) else [item]
            for path in paths:
                touch(folder, *([path] if isinstance(path, str) else path))
    (folder / "dataset.json").write_text(json.dumps(sections))
    return folder / "dataset.json"


def pairs(*numbers: int) -> list[dict[str, str]]:
    return [{"image": f"./images/c{n:03}.nii.gz", "label": f"./labels/c{n:03}.nii.gz"} for n in numbers]


def two_folders(folder: Path, number: int, images: str = "images", labels: str = "labels") -> None:
    touch(
        folder, *(f"{images}/c{n:03}.nii.gz" for n in range(number)), *(f"{labels}/c{n:03}.nii" for n in range(number))
    )


def names(items: list[dict[str, str]], key: str = "image") -> list[str]:
    return [case_name(item[key]) for item in items]


# --- case_name ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/data/images/hippocampus_014.nii.gz", "hippocampus_014"),
        ("a.b.c.nii.gz", "a.b.c"),
        ("scan.NII.GZ", "scan"),
        ("v1.2.nii", "v1.2"),
        (Path("x") / "y.nrrd", "y"),
        ("photo.jpeg", "photo"),
        ("notes.txt", "notes"),
        ("series", "series"),
        ("dir.nii.gz/scan.mha", "scan"),
    ],
)
def test_the_name_of_a_case_is_the_file_name_without_its_ending(path, expected):
    assert case_name(path) == expected


# --- pair_by_name ------------------------------------------------------------------------------------------------


def test_pairs_are_made_by_name_whatever_the_order_and_the_ending():
    images = ["i/c.nii.gz", "i/a.nii.gz", "i/b.nii"]
    labels = ["l/a.nii", "l/c.png", "l/b.nii.gz"]
    assert pair_by_name(images, labels) == [
        {"image": "i/a.nii.gz", "label": "l/a.nii"},
        {"image": "i/b.nii", "label": "l/b.nii.gz"},
        {"image": "i/c.nii.gz", "label": "l/c.png"},
    ]


def test_paths_and_iterators_are_taken_and_nothing_gives_nothing():
    assert pair_by_name(iter([Path("i/a.nii")]), (Path("l/a.nii"),)) == [{"image": "i/a.nii", "label": "l/a.nii"}]
    assert pair_by_name([], []) == []


@pytest.mark.parametrize(("missing", "present"), [("label", "image"), ("image", "label")])
def test_a_case_without_its_partner_raises_and_is_named_instead_of_shifting_all_others(missing, present):
    files = {"image": [f"i/c{n}.nii" for n in range(4)], "label": [f"l/c{n}.nii" for n in range(4)]}
    del files[missing][1]
    with pytest.raises(DataError, match=f"there is no {missing} named 'c1'") as caught:
        pair_by_name(files["image"], files["label"])
    assert caught.value.what == f"{present[0]}/c1.nii"


def test_lists_of_equal_length_with_other_names_raise_and_are_counted():
    with pytest.raises(DataError, match=r"no label named 'a' \(and 1 more: b\)"):
        pair_by_name(["i/a.nii", "i/b.nii", "i/c.nii"], ["l/c.nii", "l/d.nii", "l/e.nii"])


@pytest.mark.parametrize("kind", ["image", "label"])
def test_two_files_of_one_case_raise_and_are_both_named(kind):
    files = {"image": ["x/a.nii"], "label": ["y/a.nii"]}
    files[kind] = ["p/a.nii.gz", "q/a.nii"]
    with pytest.raises(DataError, match=r"case 'a' is also in p/a\.nii\.gz") as caught:
        pair_by_name(files["image"], files["label"])
    assert caught.value.what == "q/a.nii"


# --- cases -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "labels"), [("images", "labels"), ("imagesTr", "labelsTr")])
def test_folders_are_paired_to_absolute_paths_that_exist(tmp_path, images, labels):
    two_folders(tmp_path, 10, images, labels)
    found = cases(tmp_path) + cases(tmp_path, "validation")
    assert len(found) == 10
    for item in found:
        assert item.keys() == {"image", "label"}
        assert names([item]) == names([item], "label")
        assert all(Path(path).is_absolute() and Path(path).is_file() for path in item.values())


def test_a_relative_folder_gives_absolute_paths(tmp_path, monkeypatch):
    two_folders(tmp_path / "set", 5)
    monkeypatch.chdir(tmp_path)
    assert cases("set") == cases(tmp_path / "set")


def test_hidden_and_foreign_files_in_the_folders_are_passed_over(tmp_path):
    two_folders(tmp_path, 5)
    touch(tmp_path, "images/.DS_Store", "images/._c000.nii.gz", "labels/readme.txt", "images/Thumbs.db")
    assert len(cases(tmp_path)) == 4


@pytest.mark.parametrize("section", ["training", "validation"])
@pytest.mark.parametrize("removed", ["labels/c002.nii", "images/c002.nii.gz"])
def test_a_missing_file_in_a_folder_raises_and_names_the_case(tmp_path, removed, section):
    two_folders(tmp_path, 10)
    (tmp_path / removed).unlink()
    with pytest.raises(DataError, match="'c002'"):
        cases(tmp_path, section)


@pytest.mark.parametrize("with_listing", [True, False])
@pytest.mark.parametrize(("number", "held_out"), [(5, 1), (10, 2), (40, 8), (161, 32)])
def test_the_validation_split_is_a_fifth_disjoint_complete_and_the_same_every_time(
    tmp_path, number, held_out, with_listing
):
    if with_listing:
        listing(tmp_path, training=pairs(*range(number)))
    else:
        two_folders(tmp_path, number)
    training, validation = names(cases(tmp_path)), names(cases(tmp_path, "validation"))
    assert len(validation) == held_out
    assert not set(training) & set(validation)
    assert sorted(training + validation) == [f"c{n:03}" for n in range(number)]
    assert (training, validation) == (names(cases(tmp_path)), names(cases(tmp_path, "validation")))


def test_the_validation_split_does_not_take_the_last_cases_only(tmp_path):
    two_folders(tmp_path, 100)
    assert set(names(cases(tmp_path, "validation"))) != {f"c{n:03}" for n in range(80, 100)}


def test_a_listed_validation_section_is_followed(tmp_path):
    listing(tmp_path, training=pairs(1, 2, 3), validation=pairs(9, 8), test=["./images/t.nii.gz"])
    assert names(cases(tmp_path)) == ["c001", "c002", "c003"]
    assert names(cases(tmp_path, "validation")) == ["c009", "c008"]
    assert cases(tmp_path, "test") == [{"image": str(tmp_path / "images/t.nii.gz")}]


def test_test_cases_may_be_strings_or_dictionaries(tmp_path):
    strings = tmp_path / "strings"
    dictionaries = tmp_path / "dictionaries"
    for folder in (strings, dictionaries):
        folder.mkdir()
    listing(strings, training=pairs(1), test=["./images/t1.nii.gz", "images/t2.nii.gz"])
    listing(dictionaries, training=pairs(1), test=[{"image": "./images/t1.nii.gz"}, {"image": "images/t2.nii.gz"}])
    for folder in (strings, dictionaries):
        assert [item["image"] for item in cases(folder, "test")] == [
            str(folder / f"images/t{n}.nii.gz") for n in (1, 2)
        ]


def test_images_of_several_files_are_taken(tmp_path):
    item = {"image": ["images/a_t1.nii", "images/a_t2.nii"], "label": "labels/a.nii"}
    listing(tmp_path, training=[item], validation=[item])
    (found,) = cases(tmp_path)
    assert found["image"] == [str(tmp_path / path) for path in item["image"]]


def test_a_listing_that_pairs_an_image_with_the_label_of_another_case_raises(tmp_path):
    mixed = pairs(1, 2, 3)
    mixed[0]["label"], mixed[1]["label"] = mixed[1]["label"], mixed[0]["label"]
    listing(tmp_path, training=mixed)
    with pytest.raises(DataError, match="named after another case") as caught:
        cases(tmp_path)
    assert caught.value.what == str(tmp_path / "labels/c002.nii.gz")
    assert "c001.nii.gz" in caught.value.problem


def test_a_listing_whose_labels_have_names_of_their_own_is_followed(tmp_path):
    items = [{"image": f"images/i{n}.nii", "label": f"labels/i{n}_seg.nii"} for n in range(5)]
    listing(tmp_path, training=items)
    assert len(cases(tmp_path)) == 4


@pytest.mark.parametrize("path", ["images/c002.nii.gz", "labels/c002.nii.gz"])
def test_a_listed_file_that_does_not_exist_raises_and_is_named(tmp_path, path):
    listing(tmp_path, training=pairs(1, 2, 3))
    (tmp_path / path).unlink()
    with pytest.raises(DataError, match="but it is not there") as caught:
        cases(tmp_path)
    assert caught.value.what == str(tmp_path / path)


@pytest.mark.parametrize("content", ["", "{", "{'training': []}", "training: []"])
def test_an_invalid_listing_raises_and_tells_what_is_wrong(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(DataError, match="not valid JSON") as caught:
        cases(tmp_path)
    assert caught.value.what == str(tmp_path / "dataset.json")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x81", b"[]", b'"text"', b"null"])
def test_a_listing_that_is_no_json_object_in_utf_8_raises_a_data_error(tmp_path, content):
    (tmp_path / "dataset.json").write_bytes(content)
    with pytest.raises(DataError):
        cases(tmp_path)


def test_a_missing_section_raises_and_tells_what_there_is(tmp_path):
    listing(tmp_path, training=pairs(1, 2), validation=pairs(3))
    with pytest.raises(DataError, match=r"no cases for 'test' \(found: 2 training, 1 validation\)"):
        cases(tmp_path, "test")


def test_an_empty_listing_raises(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match=r"no cases for 'training' \(found: none\)"):
        cases(tmp_path)


def test_a_folder_of_something_else_raises_and_tells_what_it_holds(tmp_path):
    touch(tmp_path, "pictures/a.nii", "notes.txt")
    with pytest.raises(DataError, match=r"it holds: notes\.txt, pictures"):
        cases(tmp_path)


def test_a_folder_that_does_not_exist_raises(tmp_path):
    with pytest.raises(DataError, match="it holds: nothing"):
        cases(tmp_path / "nowhere")


def test_empty_folders_of_images_and_labels_raise(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(DataError, match=r"no cases for 'training' \(found: 0 training\)"):
        cases(tmp_path)


@pytest.mark.parametrize("number", [1, 2])
def test_too_few_cases_to_set_some_apart_are_told_with_the_number_needed(tmp_path, number):
    two_folders(tmp_path, number)
    with pytest.raises(DataError, match=f"it has {number} cases for training, and at least 3 are needed") as caught:
        cases(tmp_path, "validation")
    assert caught.value.what == str(tmp_path)
    assert len(cases(tmp_path)) == number
    two_folders(tmp_path, 3)
    assert len(cases(tmp_path, "validation")) == 1


# --- training_cases ----------------------------------------------------------------------------------------------


def save_labels(folder: Path, *values: float) -> Path:
    """Write a data set whose label maps have these values."""
    listing(folder, training=pairs(*range(len(values))), validation=pairs(99))
    for index, value in enumerate(values):
        label = nibabel.Nifti1Image(np.full((2, 2, 2), value, np.float32), np.eye(4))
        nibabel.save(label, folder / f"labels/c{index:03}.nii.gz")
    return folder


@pytest.mark.parametrize("values", [(1, 0), (0, 0, 2)])
def test_training_cases_may_have_empty_labels_among_them(tmp_path, values):
    assert training_cases(save_labels(tmp_path, *values)) == cases(tmp_path)


def test_labels_are_read_until_one_is_not_empty_only(tmp_path):
    save_labels(tmp_path, 0, 1, 1)
    (tmp_path / "labels/c002.nii.gz").write_text("damaged")
    assert len(training_cases(tmp_path)) == 3


def test_a_damaged_label_is_named(tmp_path):
    save_labels(tmp_path, 0, 1)
    (tmp_path / "labels/c000.nii.gz").write_text("damaged")
    with pytest.raises(DataError) as caught:
        training_cases(tmp_path)
    assert caught.value.what == str(tmp_path / "labels/c000.nii.gz")


def test_nothing_but_empty_labels_raise(tmp_path):
    with pytest.raises(DataError, match="labels of all its 3 cases for training are empty") as caught:
        training_cases(save_labels(tmp_path, 0, 0, 0))
    assert caught.value.what == str(tmp_path)


def test_training_cases_without_a_label_raise_and_are_named(tmp_path):
    lonely = [{"image": "images/c002.nii.gz"}, {"image": "images/c003.nii.gz"}]
    listing(tmp_path, training=pairs(1) + lonely, validation=pairs(4))
    with pytest.raises(DataError, match="2 of its 3 cases for training have no label: c002, c003"):
        training_cases(tmp_path)


# --- find_images -------------------------------------------------------------------------------------------------


def found(source: Path, root: Path) -> list[str]:
    return [str(Path(item["image"]).relative_to(root)) for item in find_images(source)]


def test_a_file_is_itself_the_image(tmp_path):
    touch(tmp_path, "scan.nii.gz", "other.nii.gz")
    assert find_images(tmp_path / "scan.nii.gz") == [{"image": str(tmp_path / "scan.nii.gz")}]


def test_a_folder_gives_its_images_in_order_and_nothing_else(tmp_path):
    touch(tmp_path, "b.nii.gz", "a.nii", "c.PNG", ".hidden.nii", "notes.txt", "table.csv")
    assert found(tmp_path, tmp_path) == ["a.nii", "b.nii.gz", "c.PNG"]


def test_nested_folders_are_searched_at_any_depth(tmp_path):
    touch(tmp_path, "p2/scan.nii.gz", "p1/day/1/scan.nii.gz", "top.mha")
    assert found(tmp_path, tmp_path) == ["p1/day/1/scan.nii.gz", "p2/scan.nii.gz", "top.mha"]


def test_a_folder_of_a_dicom_series_is_one_image(tmp_path):
    touch(tmp_path, "series/1.dcm", "series/2.dcm", "series/preview.png")
    assert find_images(tmp_path / "series") == [{"image": str(tmp_path / "series")}]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"training": pairs(1), "validation": pairs(2), "test": ["images/t.nii.gz"]}, ["images/t.nii.gz"]),
        ({"training": pairs(1), "validation": pairs(2)}, ["images/c002.nii.gz"]),
        ({"test": [{"image": "images/t.nii.gz"}]}, ["images/t.nii.gz"]),
    ],
)
def test_a_data_set_gives_its_test_cases_or_else_its_validation_cases_without_labels(tmp_path, sections, expected):
    listing(tmp_path, **sections)
    assert found(tmp_path, tmp_path) == expected
    assert all(item.keys() == {"image"} for item in find_images(tmp_path))


def test_a_data_set_without_validation_gives_the_cases_that_were_set_apart(tmp_path):
    listing(tmp_path, training=pairs(*range(10)))
    assert names(find_images(tmp_path)) == names(cases(tmp_path, "validation"))


def test_a_folder_without_images_raises_and_tells_what_it_holds(tmp_path):
    touch(tmp_path, "notes.txt", "table.csv")
    with pytest.raises(DataError, match=r"it holds: notes\.txt, table\.csv"):
        find_images(tmp_path)


def test_an_empty_folder_raises_and_says_so(tmp_path):
    with pytest.raises(DataError, match="it holds: nothing"):
        find_images(tmp_path)


def test_a_source_that_does_not_exist_raises(tmp_path):
    with pytest.raises(DataError, match="no such file or folder") as caught:
        find_images(tmp_path / "nowhere.nii")
    assert caught.value.what == str(tmp_path / "nowhere.nii")


# --- common_root and locate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (["/d/a/1.nii"], "/d/a"),
        (["/d/a/1.nii", "/d/a/2.nii"], "/d/a"),
        (["/d/a/1.nii", "/d/b/c/1.nii"], "/d"),
        (["/d/ab/1.nii", "/d/ac/1.nii"], "/d"),
        ([["/d/a/1.nii", "/d/a/2.nii"], ["/d/b/1.nii", "/d/b/2.nii"]], "/d"),
        ([], ""),
    ],
)
def test_the_common_root_is_the_deepest_folder_above_all_images(images, expected):
    assert common_root([{"image": image} for image in images]) == expected


def test_the_common_root_of_relative_paths_is_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert common_root([{"image": "a/1.nii"}, {"image": Path("b/1.nii")}]) == str(tmp_path)


def test_locate_gives_the_first_folder_that_exists_and_else_the_last_one(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path))
    assert locate("real", "synthetic") == str(tmp_path / "synthetic")
    (tmp_path / "synthetic").mkdir()
    assert locate("real", "synthetic") == str(tmp_path / "synthetic")
    (tmp_path / "real").mkdir()
    assert locate("real", "synthetic") == str(tmp_path / "real")


def test_locate_passes_over_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path))
    touch(tmp_path, "real")
    assert locate("real", "synthetic") == str(tmp_path / "synthetic")


def test_locate_looks_in_data_where_no_directory_is_set(tmp_path, monkeypatch):
    monkeypatch.delenv("MONAI_DATA_DIRECTORY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "real").mkdir(parents=True)
    assert locate("real", "synthetic") == str(Path("data") / "real")


# --- real data ---------------------------------------------------------------------------------------------------


def test_the_hippocampus_data_set_has_161_training_and_40_validation_cases(real_data):
    folder = real_data("hippocampus")
    training, validation = cases(folder), cases(folder, "validation")
    assert (len(training), len(validation)) == (161, 40)
    assert not set(names(training)) & set(names(validation))
    assert names(training) == names(training, "label")
    assert names(find_images(folder)) == names(validation)


def test_a_listed_case_without_an_image_raises_a_data_error(tmp_path):
    (tmp_path / "a.nii").write_text("")
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"label": "a.nii"}]}))
    with pytest.raises(DataError, match="has no 'image'"):
        cases(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"image": "../scan.nii", "label": "scan.nii"},
        {"image": ["scan.nii", "images/../../scan.nii"]},
        {"image": "scan.nii", "mask": "../scan.nii"},
        "../scan.nii",
    ],
)
def test_a_relative_path_that_leads_out_of_the_data_set_raises(tmp_path, entry):
    (tmp_path / "data" / "images").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "data"):
        (folder / "scan.nii").write_text("")
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"test": [entry]}))
    with pytest.raises(DataError, match="leads out of that folder"):
        cases(tmp_path / "data", "test")


def test_an_absolute_path_may_lead_anywhere_and_a_relative_one_out_and_in_again(tmp_path):
    (tmp_path / "data").mkdir()
    for folder in (tmp_path, tmp_path / "data"):
        (folder / "scan.nii").write_text("")
    listing = {"test": [{"image": str(tmp_path / "scan.nii"), "label": "images/../scan.nii", "age": 7}]}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(listing))
    (case,) = cases(tmp_path / "data", "test")
    assert (case["image"], case["label"]) == (str(tmp_path / "scan.nii"), str(tmp_path / "data" / "scan.nii"))
