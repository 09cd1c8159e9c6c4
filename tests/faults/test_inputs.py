# SPDX-License-Identifier: Apache-2.0
import io
import json
import os
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_attn.data import cases, find_images
from monai_attn.errors import DataError

fault = pytest.mark.fault


def found_in(folder: Path) -> list[str]:
    return [os.path.relpath(item["image"], folder) for item in find_images(folder)]


@fault(77)
def test_a_folder_with_all_sorts_of_images_links_and_other_files(lab, write_series, caplog):
    folder, there = lab.folder / "in", lab.folder / "elsewhere"
    volume = nibabel.load(lab.copy("in/a.nii.gz"))
    nibabel.save(nibabel.MGHImage(lab.scan, volume.affine), folder / "b.mgz")
    nibabel.save(nibabel.Nifti1Pair(lab.scan, volume.affine), folder / "c.img")
    lab.copy("elsewhere/d.nii.gz")
    (folder / "link").symlink_to(there)
    (there / "loop").symlink_to(folder)
    (folder / "gone.nii.gz").symlink_to(lab.folder / "nowhere.nii.gz")
    (folder / "notes.txt").touch()
    write_series(folder / "series", range(lab.scan.shape[2]), voxels=lab.scan)
    write_series(folder, [0], voxels=lab.scan[..., :1])  # a stray slice
    attempt = lab.segment(folder).finished()
    attempt.warned(folder, "2 left out, no images: gone.nii.gz, notes.txt")
    results = sorted(
        str(path.relative_to(attempt.output))[: -len("_seg.nii.gz")] for path in attempt.output.rglob("*_seg*")
    )
    assert results == ["in", "in/a", "in/b", "in/c", "in/link/d", "in/series"]
    for name in "abcd":
        assert np.array_equal(np.asarray(attempt.mask(f"{name}.nii.gz").dataobj), lab.mask)
    assert found_in(lab.folder / "elsewhere")[0] == "d.nii.gz"
    for name in ("p.bmp", "q.webp"):
        Image.new("L", (8, 8)).save(there / name)
    (there / "loop").unlink()
    assert found_in(there) == ["d.nii.gz", "p.bmp", "q.webp"]


@fault(77)
def test_a_header_of_analyze_that_does_not_say_how_the_image_is_oriented(lab):
    nibabel.save(nibabel.AnalyzeImage(lab.scan, None), lab.folder / "a.img")
    lab.segment(lab.folder / "a.img").refused(lab.folder / "a.img", "orientation is unknown")


@fault(78)
@pytest.mark.parametrize("name", ["IM_{:04}", "{}.DCM", "1.2.{}.IMA", "{:08}"])
def test_dicom_of_any_name_and_a_folder_for_each_patient(write_series, tmp_path, name):
    for patient in ("p1", "p2/day"):
        for number, file in enumerate(sorted(write_series(tmp_path / patient, [0, 2, 4]).iterdir())):
            file.rename(file.with_name(name.format(number)))
        (tmp_path / patient / "preview.png").touch()
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    assert found_in(tmp_path) == ["p1", "p2/day"]
    assert found_in(tmp_path / "p1") == ["."]


@fault(79)
@pytest.mark.parametrize("name", ["labels", "Labels", "masks", "segmentation", "labelsTr", "GT", "ground truth"])
def test_folders_of_labels_and_hidden_ones(tmp_path, name, caplog):
    for part in ("images", name, ".hidden", "p/.git", "p"):
        (tmp_path / part).mkdir(parents=True, exist_ok=True)
        (tmp_path / part / "x.nii.gz").touch()
    assert found_in(tmp_path) == ["images/x.nii.gz", "p/x.nii.gz"]
    assert f"1 left out, labels or results: {name}/x.nii.gz" in caplog.text
    assert "2 left out, hidden: .hidden, p/.git" in caplog.text


@pytest.fixture
def listed(tmp_path):
    """Writes a dataset.json of five cases, one of them or all changed, and returns its training cases."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for number in range(6):
            (tmp_path / kind / f"c{number}.nii.gz").touch()
    pairs = [{"image": f"images/c{n}.nii.gz", "label": f"labels/c{n}.nii.gz"} for n in range(5)]

    def read(change=None, encoding="utf-8", section="training", **sections):
        content = {"training": [pairs[0] | (change or {}), *pairs[1:]], **sections}
        (tmp_path / "dataset.json").write_bytes(json.dumps(content).encode(encoding))
        return cases(tmp_path, section)

    return read


@fault(80)
@pytest.mark.parametrize(
    "change",
    [
        *({"label": odd} for odd in (5, True, {"a": "labels/c0.nii.gz"}, [], ["a", "b"], [None], float("nan"))),
        *({"image": odd} for odd in (None, 5, {"t1": "images/c0.nii.gz"}, [["images/c0.nii.gz"]], [5], "", [])),
        {"fold": [1]},
    ],
    ids=str,
)
def test_a_case_of_an_odd_form_is_one_error_that_names_it(listed, tmp_path, change):
    with pytest.raises(DataError, match=r"a case has no .* under 'training'") as caught:
        listed(change)
    assert json.dumps(next(iter(change.values())))[:20] in caught.value.problem
    assert len(str(caught.value).splitlines()) == 3


@fault(80)
def test_other_odd_data_lists(listed, tmp_path):
    for odd in ({"c0": {"image": "images/c0.nii.gz"}}, "images", 5, [1], [None], [["images/c0.nii.gz"]]):
        with pytest.raises(DataError, match=r"no list of cases|a case has no"):
            listed(training=odd)
    (tmp_path / "dataset.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not valid JSON"):
        cases(tmp_path)
    with pytest.raises(DataError, match="is not there"):
        listed({"image": "a" * 5000})
    whole = listed()
    first = {"image": "images\\c0.nii.gz", "label": [".\\labels\\c0.nii.gz"]}
    assert listed(first) == listed(first, "utf-8-sig") == whole
    assert len(listed({"label": None})) == len(whole)
    with pytest.raises(DataError, match="leads out"):
        listed({"image": "..\\c0.nii.gz"})
    assert all("label" not in case for case in listed(training=[f"images/c{n}.nii.gz" for n in range(5)]))


@fault(81)
@pytest.mark.parametrize(
    "odd",
    [[{"image": "images/c5.nii.gz"}], {"c5": {"image": "c5.nii.gz"}}, [["images/c5.nii.gz"]], {"x": [{"i": "5.png"}]}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("key", ["val", "Training", "fold_0"])
def test_sections_of_other_names_are_named(listed, key, odd):
    with pytest.raises(DataError, match=f"it lists cases under '{key}'; known are training, validation, test"):
        listed(**{key: odd})
    assert listed(section="test", testing=["images/c5.nii.gz"])[0]["image"].endswith("c5.nii.gz")
    assert [case["image"][-9] for case in listed({"fold": 0}, section="validation")] != []


@fault(82)
def test_a_file_or_a_patient_in_two_sections(listed, tmp_path, caplog):
    for kind in ("images", "labels"):
        (tmp_path / kind / "z.nii.gz").symlink_to(tmp_path / kind / "c0.nii.gz")
    listed(validation=[{"image": "images/z.nii.gz", "label": "labels/z.nii.gz"}])
    assert "patients in several sections" in caplog.text
    slices = [f"p{patient}_{kind}{n}" for patient in range(5) for n, kind in enumerate(["slice0", "sl", "frame", "z"])]
    for kind in ("images", "labels"):
        for name in slices:
            (tmp_path / kind / f"{name}.png").touch()
    pairs = [{"image": f"images/{name}.png", "label": f"labels/{name}.png"} for name in slices]
    training, held_out = ({Path(case["image"]).name[:2] for case in listed(section=part, training=pairs)}
                          for part in ("training", "validation"))  # fmt: skip
    assert (len(training), len(held_out), training & held_out) == (4, 1, set())


@fault(84)
def test_names_that_are_numbers(lab, monkeypatch):
    from monai_attn.cli import main

    for name in ("12345/a.nii.gz", "1e5.nii.gz", "2024/y.nii.gz", "x1.nii.gz", "x2.nii.gz"):
        lab.copy(name)
    monkeypatch.chdir(lab.folder)
    network = ["--checkpoint", str(lab.bundle.weights), "--network_def#features", "8"]
    for inputs, names in {"12345": "a", "1e5.nii.gz 2024": "1e5 y", "x*.nii.gz": "x1 x2"}.items():
        assert main(["segment", lab.bundle.root.name, *inputs.split(), "-o", "2025", *network, "--overwrite"]) == 0
        assert all(list(Path("2025").rglob(f"{name}_seg.nii.gz")) for name in names.split())
    assert find_images(2024)[0]["image"] == str(lab.folder / "2024" / "y.nii.gz")


@fault(85)
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii"])
def test_names_that_are_no_text_and_a_screen_that_lacks_signs(lab, monkeypatch, encoding):
    for name in (b"caf\xe9.nii.gz", "日本.nii.gz".encode(), b"bad\xff.nii.gz"):
        Path(os.fsdecode(os.fsencode(lab.folder / "in") + b"/" + name)).parent.mkdir(exist_ok=True)
        lab.copy(f"in/{os.fsdecode(name)}")
    lab.copy("in/damaged\udcfe.nii.gz").write_bytes(b"xx")
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    attempt = lab.segment(lab.folder / "in")
    streams[1].flush()
    assert attempt.code == 3
    assert len(list(attempt.output.glob("*_seg.nii.gz"))) == len(list(attempt.output.glob("*_overlay.png"))) == 3
    assert b"1 of 4 cases have no result" in streams[1].buffer.getvalue()
    assert "damaged?" in (attempt.output / "inference.log").read_text("utf-8")
