# SPDX-License-Identifier: Apache-2.0
"""Made-up downloads with the names, layouts and values of the real ones."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest
from monai.bundle import ConfigParser
from PIL import Image
from scipy.io import savemat

from monai_attn.cli import main
from monai_attn.data import cases, find_images
from monai_attn.data.prepare import _sources
from monai_attn.run.workflow import check_bundle

ROOT = Path(__file__).parents[2]
AFFINE = np.diag([-1.0, 1.0, 1.0, 1.0])
AFFINE[:3, 3] = 5, -7, 9
RNG = np.random.default_rng(0)


def labels(*values: int, shape: tuple[int, ...] = (12, 10, 8)) -> np.ndarray:
    """An array in which all of the values occur, the first one at its border."""
    return np.resize(np.array(values, np.int16), shape)


def scan(values: Iterable[int] = range(200), shape: tuple[int, ...] = (12, 10, 8)) -> np.ndarray:
    return RNG.choice(np.array([*values], np.int16), shape)


def write(path: Path, array: np.ndarray) -> Path:
    """Write a volume or picture in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mgz":
        nibabel.save(nibabel.MGHImage(array.astype(np.int32), AFFINE), path)
    elif ".nii" in path.name:
        nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    elif path.suffix in (".mha", ".tif"):
        itk.imwrite(itk.image_from_array(np.ascontiguousarray(array.T)), str(path))
    else:
        Image.fromarray(array.astype(np.uint8)).save(path)
    return path


def malc(root: Path) -> None:
    for part, names in {"training": ["1000_3", "1001_3", "1017_3"], "testing": ["1003_3"]}.items():
        for name in names:
            write(root / f"{part}-images/{name}.nii", scan()[..., None])
            write(root / f"{part}-labels/{name}_glm.nii", labels(0, 4, 46, 51, 49, 100, 207, 62)[..., None])


def freesurfer(root: Path) -> None:
    for name in ("bert", "fsaverage", "ernie", "oscar"):
        suffix = "nii.gz" if name == "oscar" else "mgz"
        write(root / name / f"mri/orig.{suffix}", scan())
        write(root / name / f"mri/aseg.{suffix}", labels(0, 2, 3, 5, 42, 60, 85))
    write(root / "bert/mri/aparc+aseg.mgz", labels(0, 2, 1035, 44, 2000, 60, 251))


def visceral(root: Path) -> None:
    for corpus, names in {"SilverCorpus": ["10000200", "10000201", "10000202"], "GoldCorpus": ["10000100"]}.items():
        for name in names:
            write(root / corpus / f"Volumes/{name}_1_CTce_ThAb.nii.gz", scan(range(-1000, 300)))
            for number, organ in enumerate((58, 1302, 1326, 29662, 29663, 86, 32248, 32249, 1247, 170)):
                mask = np.zeros((12, 10, 8), np.uint8)
                mask[number : number + 2] = 1
                write(root / corpus / f"Segmentations/{name}_1_CTce_ThAb_{organ}_7.nii.gz", mask)


def duke(root: Path, undrawn: int = 0) -> None:
    root.mkdir()
    for subject in range(1, 7):
        boundaries = np.full((8, 20, 4), np.nan)
        boundaries[:, undrawn : 20 - undrawn, 1:3] = np.arange(4, 36, 4)[:, None, None] + 0.4
        fluid = np.where(np.isnan(boundaries[:1]), np.nan, 0) * np.ones((48, 1, 1))
        fluid[10:12, 5:7, 1:3] = 2
        content = {"images": scan(range(256), (48, 20, 4)).astype(np.uint8), "manualLayers1": boundaries}
        savemat(root / f"Subject_{subject:02d}.mat", content | {"manualFluid1": fluid})


def isic(root: Path) -> None:
    for part, names in {"Training": ["0000000", "0000001"], "Validation": ["0001769"], "Test_v2": ["0012086"]}.items():
        for name in names:
            write(root / f"ISIC-2017_{part}_Data/ISIC_{name}.jpg", scan(range(256), (12, 16, 3)))
            write(root / f"ISIC-2017_{part}_Data/ISIC_{name}_superpixels.png", scan(range(9), (12, 16, 3)))
            write(
                root / f"ISIC-2017_{part}_Part1_GroundTruth/ISIC_{name}_segmentation.png",
                labels(0, 255, shape=(12, 16)),
            )


def lungs(root: Path) -> None:
    for number in range(4):
        write(root / f"2d_images/ID_000{number}_Z_0142.tif", labels(-1000, -300, shape=(16, 12)))
        write(root / f"2d_masks/ID_000{number}_Z_0142.tif", labels(0, 255, shape=(16, 12)).astype(np.uint8))
    write(root / "3d_images/IMG_0059.nii.gz", scan(range(-1000, 300)))
    write(root / "3d_images/MASK_0059.nii.gz", labels(0, 255))


def brats_2015(root: Path) -> None:
    for case in ("HGG/brats_2013_pat0001_1", "HGG/brats_2013_pat0002_1", "LGG/brats_2013_pat0001_1"):
        for number, name in enumerate(("MR_Flair", "MR_T1", "MR_T1c", "MR_T2")):
            path = f"VSD.Brain.XX.O.{name}.5451{number}"
            write(root / case / path / f"{path}.mha", scan())
        write(root / case / "VSD.Brain_3more.XX.O.OT.54517/VSD.Brain_3more.XX.O.OT.54517.mha", labels(0, 1, 2, 3, 4))


def brats_2019(root: Path) -> None:
    for case in ("HGG/BraTS19_2013_0_1", "HGG/BraTS19_CBICA_AAB_1", "LGG/BraTS19_TCIA09_141_1"):
        for part in ("t1", "t1ce", "t2", "flair"):
            write(root / case / f"{Path(case).name}_{part}.nii.gz", scan())
        write(root / case / f"{Path(case).name}_seg.nii.gz", labels(0, 1, 2, 4))
    (root / "HGG/survival.csv").write_text("")


def kits(root: Path) -> None:
    for number in (0, 1, 209, 210):
        write(root / f"data/case_00{number:03d}/imaging.nii.gz", scan(range(-1000, 300)))
        if number < 210:
            write(root / f"data/case_00{number:03d}/segmentation.nii.gz", labels(0, 1, 2))


DOWNLOADS: dict[str, tuple[str, Callable[[Path], None], str, str]] = {
    # the bundle, how its download looks, a label, and an image
    "malc": ("brain_mri_scse_segmentation", malc, "training-labels/1000_3_glm.nii", "testing-images/1003_3.nii"),
    "freesurfer": ("brain_mri_scse_segmentation", freesurfer, "ernie/mri/aseg.mgz", "bert/mri/orig.mgz"),
    "visceral": (
        "whole_body_ct_scse",
        visceral,
        "GoldCorpus/Segmentations/10000100_1_CTce_ThAb_*.nii.gz",
        "SilverCorpus/Volumes/10000200_1_CTce_ThAb.nii.gz",
    ),
    "isic": (
        "skin_lesion_focusnet",
        isic,
        "ISIC-2017_Test_v2_Part1_GroundTruth/ISIC_0012086_segmentation.png",
        "ISIC-2017_Training_Data/ISIC_0000001.jpg",
    ),
    "lungs": ("lung_ct_focusnet", lungs, "2d_masks/ID_0002_Z_0142.tif", "2d_images/ID_0001_Z_0142.tif"),
    "brats_2015": (
        "brats_mri_autofocus",
        brats_2015,
        "HGG/brats_2013_pat0002_1/*OT*/*.mha",
        "LGG/brats_2013_pat0001_1/*T1c*/*.mha",
    ),
    "brats_2019": (
        "brats_mri_egcnn",
        brats_2019,
        "HGG/BraTS19_2013_0_1/*_seg.nii.gz",
        "LGG/BraTS19_TCIA09_141_1/*_t1ce.nii.gz",
    ),
    "kits": ("kits_ct_egcnn", kits, "data/case_00001/segmentation.nii.gz", "data/case_00209/imaging.nii.gz"),
    "duke": ("retinal_oct_scse", duke, "", ""),
}


@pytest.fixture
def prepared(tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str]]:
    """Makes a download and prepares it; returns the exit code and what was printed."""

    def run(
        name: str, *, change: Callable[[Path], object] = lambda root: None, options: Iterable[str] = ()
    ) -> tuple[int, str]:
        bundle, make, _, _ = DOWNLOADS[name]
        if not (tmp_path / "raw").exists():
            make(tmp_path / "raw")
        change(tmp_path / "raw")
        code = main(["prepare", bundle, str(tmp_path / "raw"), "-o", str(tmp_path / "data"), *options])
        output = capsys.readouterr()
        return code, output.out + output.err

    return run


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def read(folder: Path, section: str) -> list[np.ndarray]:
    found = [item["label"] for item in cases(folder, section)]
    return [
        np.asanyarray(nibabel.load(path).dataobj) if ".nii" in path else np.array(Image.open(path)) for path in found
    ]


@pytest.mark.parametrize(
    ("name", "sizes", "left_out", "written"),
    [
        ("malc", (2, 1, 1), 0, 4),
        ("freesurfer", (2, 1, 0), 2, 3),
        ("visceral", (2, 1, 1), 0, 4),
        ("duke", (8, 2, 2), 0, 24),
        ("isic", (2, 1, 1), 4, 0),
        ("lungs", (3, 1, 0), 0, 0),
        ("brats_2015", (2, 1, 0), 0, 0),
        ("brats_2019", (2, 1, 0), 1, 0),
        ("kits", (2, 1, 0), 1, 0),
    ],
)
def test_a_download_becomes_a_folder_that_the_bundle_accepts(tmp_path, prepared, name, sizes, left_out, written):
    code, text = prepared(name)
    assert code == 0, text
    assert f"left out: {left_out} other files" in text
    listings = 2 if name == "lungs" else 1
    assert f"written: {written + listings} files" in text
    data = tmp_path / "data"
    content = json.loads((data / "dataset.json").read_text())
    found = {
        section: cases(data, section)
        for section in ("training", "validation", "test")
        if section != "test" or "test" in content
    }
    assert tuple(len(found.get(section, ())) for section in ("training", "validation", "test")) == sizes
    options = content.get("options", {})
    bundle = re.search(r"monai-attn check (\S+)", text)[1]
    lines = list(check_bundle(str(ROOT / "bundles" / bundle), dataset_dir=str(data), sections=found, overrides=options))
    assert lines[-1].endswith("0 cannot; 0 with warnings"), lines
    before = contents(data)
    assert prepared(name)[1] == text.replace(f"written: {written + listings} files", "written: 0 files")
    assert contents(data) == before


@pytest.mark.parametrize("name", [name for name in DOWNLOADS if name != "duke"])
@pytest.mark.parametrize("fault", ["no label", "no image", "value", "damaged"])
def test_what_is_missing_surplus_or_unknown_is_one_error_and_nothing_is_written(tmp_path, prepared, name, fault):
    _, _, label, image = DOWNLOADS[name]

    def change(root: Path) -> None:
        for path in list(root.glob(image if fault == "no image" else label)):
            if fault != "value":
                path.unlink() if fault.startswith("no") else path.write_bytes(path.read_bytes()[:40])
            elif name == "visceral":
                path.rename(path.with_name(path.name.replace("_58_", "_59_")))
            else:
                write(
                    path,
                    labels(
                        0, 201 if name == "isic" else 999, shape=(12, 16) if name in ("isic", "lungs") else (12, 10, 8)
                    ),
                )

    code, text = prepared(name, change=change)
    assert code == 2
    words = {"no label": r"its case \S+ has no label", "no image": r"its case \S+ has no (t1c|t1ce)? ?image"}
    words |= {"value": r"(values|organ) (999|201|59)\b.* (known are|none of) ", "damaged": r"cannot use /\S+/raw/\S+"}
    assert re.search(words[fault], text), text
    assert len(text.splitlines()) <= 4
    assert not (tmp_path / "data").exists()


def test_values_become_the_classes_of_the_bundle():
    def names(bundle: str) -> list[str]:
        config = ConfigParser.load_config_file(str(ROOT / f"bundles/{bundle}_segmentation/configs/train.json"))
        return ["background", *config["structures"]]

    malc, freesurfer = (source.values for source in _sources("brain_mri_scse_segmentation"))
    (organs,) = (source.values for source in _sources("whole_body_ct_scse_segmentation"))
    brain, body = names("brain_mri_scse"), names("whole_body_ct_scse")
    for value, name in {
        35: "brain stem", 4: "3rd ventricle", 11: "4th ventricle", 45: "L cerebral WM", 44: "R cerebral WM",
        101: brain[2],
        206: brain[17], 52: brain[3], 50: brain[3], 51: brain[18], 49: brain[18], 39: "L cerebellum cortex",
        38: "R cerebellum cortex", 60: "L thalamus", 48: "L hippocampus", 31: "R amygdala", 62: "L ventral DC",
        61: "R ventral DC", 46: "background", 23: "background",
    }.items():  # fmt: skip
        assert brain[malc[value]] == name
    # the numbers of FreeSurfer's color table
    pairs = {7: "cerebellum WM", 8: "cerebellum cortex", 10: "thalamus", 11: "caudate", 12: "putamen", 13: "pallidum"}
    for value, name in (pairs | {17: "hippocampus", 18: "amygdala", 28: "ventral DC"}).items():
        assert (
            brain[freesurfer[value]],
            brain[freesurfer[value + (32 if value == 28 else 36 + 3 * (value < 17))]],
        ) == (
            f"L {name}",
            f"R {name}",
        )
    assert {value: body[number] for value, number in organs.items() if number} == {
        58: "liver", 86: "spleen", 237: "urinary bladder", 1247: "trachea", 1302: "right lung", 1326: "left lung",
        29662: "right kidney", 29663: "left kidney", 32248: "right psoas", 32249: "left psoas",
    }  # fmt: skip


def test_labels_are_written_on_the_grid_of_the_source_and_images_stay_where_they_are(tmp_path, prepared):
    prepared("malc")
    (item,) = cases(tmp_path / "data", "test")
    assert item["image"] == str(tmp_path / "raw/testing-images/1003_3.nii")
    label, source = (nibabel.load(path) for path in (item["label"], tmp_path / "raw/testing-labels/1003_3_glm.nii"))
    np.testing.assert_allclose(label.affine, source.affine)
    assert (label.get_data_dtype(), label.header["sform_code"]) == (np.uint8, source.header["sform_code"])
    expected = dict(zip((0, 4, 46, 51, 49, 100, 207, 62), (0, 10, 0, 18, 18, 17, 2, 15)))
    np.testing.assert_array_equal(label.dataobj, np.vectorize(expected.get)(np.asanyarray(source.dataobj)[..., 0]))


def test_organs_are_merged_in_the_order_of_the_classes(tmp_path, prepared):
    _, text = prepared("visceral")
    (label,) = read(tmp_path / "data", "test")
    # each mask has two rows, of which it shares one with the next; that of the pancreas is no class
    assert label[:, 0, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 0, 0]
    assert "  2,560 voxels of two organs, given to the later one\n" in text
    assert "  4 scans without a mask of organ 237\n" in text


def test_layers_and_fluid_are_drawn_between_boundaries_and_the_rest_is_ignored(tmp_path, prepared):
    duke(tmp_path / "raw", undrawn=3)
    _, text = prepared("duke")
    assert sorted(path.name for path in (tmp_path / "data/labels").iterdir())[:3] == [
        "S01_b01.png",
        "S01_b02.png",
        "S02_b01.png",
    ]
    label = read(tmp_path / "data", "test")[0]
    assert label.shape == (48, 20)
    assert (label[:, [0, 1, 2, 17, 18, 19]] == 255).all()
    column = label[:, 8].tolist()
    assert column == [number // 4 for number in range(32)] + [8] * 16
    assert (label[10:12, 5:7] == 9).all()
    assert "72 columns without boundaries" in text


def test_pictures_in_hounsfield_units_get_a_window_and_are_refused_without(tmp_path, prepared, capsys):
    _, text = prepared("lungs")
    content = json.loads((tmp_path / "data/dataset.json").read_text())
    assert content["options"] == {"window": [-1000, 400], "intensity_mean": 0.25, "intensity_std": 0.25}
    assert "--window=[-1000,400] --intensity_mean=0.25 --intensity_std=0.25" in text
    bundle = str(ROOT / "bundles/lung_ct_focusnet_segmentation")
    command = ["check", bundle, "--dataset_dir", str(tmp_path / "data")]
    assert main(command) == 2
    assert "its values begin at -1000 (Hounsfield units?), and the window at 0" in capsys.readouterr().out
    command = ["check", bundle, "--dataset_dir", str(tmp_path / "data/volumes"), "--section", "test"]
    assert main([*command, "--config", "train", "evaluate_volume"]) == 0
    for path in (tmp_path / "raw/2d_images").iterdir():
        write(path, labels(0, 255, shape=(16, 12)).astype(np.uint8))
    _, text = prepared("lungs")
    assert "--window=[0,255] --intensity_mean=0.5 --intensity_std=0.5" in text


def test_lists_split_the_cases_and_modalities_are_in_order(tmp_path, prepared):
    (tmp_path / "test.txt").write_text("HGG/brats_2013_pat0002_1\n")
    (tmp_path / "unused.txt").write_text("LGG/brats_2013_pat0001_1\n")
    options = ["--split", *(f"{name}={tmp_path}/{name}.txt" for name in ("test", "unused"))]
    code, text = prepared("brats_2015", options=options)
    assert (code, text.splitlines()[0]) == (0, "BRATS 2015: 1 training, 1 test")
    (item,) = cases(tmp_path / "data", "test")
    assert [re.search(r"MR_(\w+)\.\d+\.mha", path)[1] for path in item["image"]] == ["T1", "T1c", "T2", "Flair"]
    (tmp_path / "test.txt").write_text("pat0009")
    assert "it has no case named pat0009" in prepared("brats_2015", options=options)[1]
    assert "cannot use test=nothing.txt" in prepared("brats_2015", options=["--split", "test=nothing.txt"])[1]


def test_segmentations_of_kits_are_no_scans_to_segment(tmp_path):
    kits(tmp_path)
    assert {Path(item["image"]).name for item in find_images(tmp_path)} == {"imaging.nii.gz"}


@pytest.mark.parametrize(
    ("bundle", "out", "words"),
    [
        ("brian_mri_scse", "data", "did you mean brain_mri_scse?"),
        ("mri", "data", "it matches several bundles: brain_mri_scse"),
        ("pelvic", "data", "the paper's data are private"),
        ("hippocampus_mri_scse", "data", "needs no preparation"),
        ("kits", "data", "expected KiTS 2019"),
        ("brats_mri_egcnn", "raw", "another one to write to"),
        ("brats_mri_egcnn", "other", "it lists another data set"),
        ("brats_mri_egcnn", "raw/HGG/survival.csv/data", "cannot be written"),
    ],
)
def test_what_cannot_be_prepared_is_said(tmp_path, capsys, bundle, out, words):
    brats_2019(tmp_path / "raw")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/dataset.json").write_text("{}")
    assert main(["prepare", bundle, str(tmp_path / "raw"), "-o", str(tmp_path / out)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("out", ["data", "raw/data", "."])
def test_the_two_folders_may_lie_anywhere(tmp_path, monkeypatch, capsys, out):
    malc(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["prepare", "brain_mri_scse_segmentation", "raw", "-o", out]) == 0
        assert "left out: 0 other files" in capsys.readouterr().out
    assert all(Path(item["image"]).is_file() for item in cases(out))


@pytest.mark.slow
@pytest.mark.parametrize("name", DOWNLOADS)
def test_a_bundle_trains_on_what_was_prepared(tmp_path, prepared, bundle_on_phantom, name):
    _, text = prepared(name)
    options = json.loads((tmp_path / "data/dataset.json").read_text()).get("options", {})
    bundle = bundle_on_phantom(re.search(r"monai-attn check (\S+)", text)[1])._replace(data=tmp_path / "data")
    bundle.run("train", output_dir=str(tmp_path / "out"), ckpt_dir=str(tmp_path / "out"), **options)
    assert (tmp_path / "out/model.pt").is_file()
