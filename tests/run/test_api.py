# SPDX-License-Identifier: Apache-2.0
import gc
import json
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import download, run
from monai.transforms import LoadImage

import monai_attn
from monai_attn.cli import main
from monai_attn.data import cases
from monai_attn.errors import ConfigError, DataError
from monai_attn.inferers import BF16Inferer
from monai_attn.run.api import import_monai
from monai_attn.run.bundles import config_files, copy_bundle, find_bundle, named_bundles, read_entries
from monai_attn.transforms import provenance_of

BUNDLE = "hippocampus_mri_scse"


@pytest.fixture
def scan(phantom):
    return cases(phantom(f"{BUNDLE}_segmentation"), "validation")[0]["image"]


def test_a_bundle_is_found_by_its_folder_its_name_or_a_part_of_it():
    assert len(named_bundles()) == 11
    for name, folder in named_bundles().items():
        assert find_bundle(name) == find_bundle(folder) == find_bundle(name.removesuffix("_segmentation")) == folder
    with pytest.raises(ConfigError, match="it matches several bundles: hippocampus_mri_egcnn_segmentation, hippo"):
        find_bundle("hippocampus")
    with pytest.raises(ConfigError, match="did you mean kits_ct_egcnn"):
        find_bundle("kits_egcn")
    with pytest.raises(ConfigError, match="but baselines, evaluate"):
        config_files(find_bundle("kits_ct"), "train", ["official"])


def test_segment_gives_what_the_command_writes_for_a_file_and_for_an_array(scan, tmp_path, capsys):
    mask, maps = monai_attn.segment(BUNDLE, scan, attention=True)
    command = ["segment", BUNDLE, scan, "-o", str(tmp_path), "--attention"]
    assert main(command) == 0
    for option in ("--amp", "--bf16"):  # which the results depend on
        other = not (torch.cuda.is_available() if option == "--amp" else BF16Inferer().enabled)
        assert main([*command, option, str(other)]) == 2
        assert "another configuration" in capsys.readouterr().err
    (written,) = tmp_path.glob("*_seg.nii.gz")
    image = nibabel.load(written)
    assert mask.dtype == torch.uint8
    assert np.array_equal(mask[0], image.dataobj)
    assert np.allclose(mask.affine, image.affine)
    for name, found in maps.items():
        (path,) = tmp_path.glob(f"*_attention_{name}.nii.gz")
        assert np.allclose(found[0], nibabel.load(path).get_fdata(), atol=1e-6)
    ras = nibabel.as_closest_canonical(nibabel.load(scan))
    same = monai_attn.segment(BUNDLE, ras.get_fdata(), affine=ras.affine)
    assert np.array_equal(same[0], nibabel.as_closest_canonical(image).dataobj)
    swapped = np.flip(np.flip(ras.get_fdata(), 0).astype(">f4"), 0)[None]  # bytes and strides that torch refuses
    assert np.array_equal(monai_attn.segment(BUNDLE, swapped, spacing=np.ones(3)), same)
    own = monai_attn.segment(BUNDLE, LoadImage(ensure_channel_first=True)(scan))
    assert np.array_equal(own, mask)
    assert np.allclose(own.affine, image.affine)
    assert main(["segment", BUNDLE, scan, "-o", str(tmp_path / "coarse"), "--spacing", "2", "2", "2"]) == 0
    (written,) = (tmp_path / "coarse").glob("*_seg.nii.gz")
    assert np.array_equal(monai_attn.segment(BUNDLE, scan, spacing=(2, 2, 2))[0], nibabel.load(written).dataobj)
    assert np.count_nonzero(mask[0] != nibabel.load(written).dataobj)
    with pytest.raises(DataError, match="a MetaTensor has its own"):
        monai_attn.segment(BUNDLE, own, spacing=[2, 2, 2])
    with pytest.raises(DataError, match="it has 2 dimensions, expected 3"):
        monai_attn.segment(BUNDLE, np.zeros((8, 8)))
    with pytest.raises(DataError, match="it is a Nifti1Image"):
        monai_attn.segment(BUNDLE, image)
    with pytest.raises(DataError, match="512 of its 512 voxels are NaN"):  # without MONAI's errors around it
        monai_attn.segment(BUNDLE, np.full((8, 8, 8), np.nan))
    with pytest.raises(DataError, match="images where one is expected"):
        monai_attn.segment(BUNDLE, Path(scan).parent)


def test_segment_computes_in_the_precision_of_the_command_and_so_do_the_maps(scan, monkeypatch):
    enabled, autocast = [], torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda *a, **k: enabled.append((*a, k["enabled"])) or autocast(*a, **k))
    with pytest.warns(UserWarning, match="CUDA is not available") if not torch.cuda.is_available() else nullcontext():
        monai_attn.segment(BUNDLE, scan, attention=True, amp=True, bf16=False)
    assert enabled == [("cuda", True)] * 2


def test_a_dicom_seg_of_a_series_is_one_of_its_results_and_refused_for_another_format(
    scan, write_series, tmp_path, capsys
):
    pytest.importorskip("highdicom")
    out = tmp_path / "out"
    assert main(["segment", BUNDLE, scan, "-o", str(out), "--dicom_seg"]) == 2
    assert "a DICOM SEG belongs to a DICOM series" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["inference.log"]
    image = nibabel.load(scan)
    corners, voxels = np.outer(np.arange(image.shape[2]), [0, 0, 1]), np.asarray(image.dataobj).astype(int)
    series = write_series(tmp_path / "series", corners, voxels=voxels, axes=[[-1, 0, 0], [0, -1, 0]])
    command = ["segment", BUNDLE, str(series), "-o", str(out), "--dicom_seg"]
    assert main(command) == 0
    file = out / "series_seg.dcm"
    labels = [segment.SegmentLabel for segment in pydicom.dcmread(file).SegmentSequence]
    assert labels == ["anterior", "posterior"]
    assert provenance_of(file) == provenance_of(out / "series_seg.nii.gz") != ""
    assert main(command) == 0
    assert "1 of 1 cases are finished" in capsys.readouterr().err
    file.unlink()
    assert main(command) == 0
    assert file.exists()


@pytest.mark.parametrize("name", named_bundles())
def test_a_copied_bundle_keeps_the_rules_of_the_model_zoo_without_its_repository(name, tmp_path):
    """The checks of the zoo's `verify_bundle.py` that need neither a network nor weights, and the links of the card."""
    copy = tmp_path / name
    assert main(["copy", name, str(copy)]) == 0
    files = ("LICENSE", "configs/metadata.json", "configs/inference.json", "docs/README.md")
    assert [file for file in files if not (copy / file).is_file()] == []
    metadata = json.loads((copy / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    links = re.findall(r"\]\((?!http|#)(.*?)\)", card := (copy / "docs" / "README.md").read_text())
    assert [link for link in links if not (copy / "docs" / link).exists()] == []
    assert card.startswith("# ")
    for package, version in {"numpy": metadata["numpy_version"], **metadata["required_packages_version"]}.items():
        assert re.fullmatch(r"[\d.]+", version), package  # the zoo pins it
    if (weights := copy / "models" / "model.pt").exists():
        assert weights.stat().st_size < 25e6  # larger ones would need `large_files.yml`


def test_a_copy_has_the_options_of_its_weights_as_defaults(tmp_path):
    first = copy_bundle(find_bundle(BUNDLE), tmp_path / "first")
    (first / "models" / "model.json").write_text(json.dumps({"options": {"network_def#features": 8}}))
    second = copy_bundle(first, tmp_path / "second")
    for name in ("train", "inference"):
        assert read_entries([second / "configs" / f"{name}.json"])["network_def"]["features"] == 8


def test_a_bundle_that_is_zipped_and_downloaded_runs_in_an_empty_folder(scan, tmp_path, monkeypatch):
    name = f"{BUNDLE}_segmentation"
    assert main(["copy", BUNDLE, str(tmp_path / "made" / name)]) == 0
    file = shutil.make_archive(str(tmp_path / name), "zip", tmp_path / "made")
    (empty := tmp_path / "empty").mkdir()
    monkeypatch.chdir(empty)
    download(name, bundle_dir=str(empty), url=Path(file).as_uri())
    files = [str(empty / name / "configs" / "inference.json")]
    run(config_file=files, bundle_root=str(empty / name), input=scan, output_dir="out")
    (mask,) = (empty / "out").glob("*_seg.nii.gz")
    assert np.array_equal(nibabel.load(mask).dataobj, monai_attn.segment(BUNDLE, scan)[0])


def test_load_gives_the_network_with_its_weights_and_options(train_bundle):
    network = monai_attn.load(BUNDLE)
    shipped = torch.load(find_bundle(BUNDLE) / "models" / "model.pt", weights_only=True)
    assert not network.training
    assert all(torch.equal(value, shipped[key]) for key, value in network.state_dict().items())
    with pytest.raises(ConfigError, match="it comes without weights"):
        monai_attn.load("kits_ct")
    with pytest.raises(DataError, match="no such file"):
        monai_attn.load(BUNDLE, checkpoint="nowhere.pt")
    assert {"load", "segment"} <= set(dir(monai_attn))


def test_what_is_imported_is_left_out_of_the_search_for_garbage(monkeypatch):
    monkeypatch.delitem(sys.modules, "monai")  # as if nothing were imported yet
    before = gc.get_freeze_count()
    import_monai()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    gc.unfreeze()


def test_independent_workers_share_the_cases_of_a_folder(phantom, tmp_path):
    folder = phantom(f"{BUNDLE}_segmentation") / "images"
    for part in (1, 2, 3):
        assert main(["segment", BUNDLE, str(folder), "-o", str(tmp_path), "--shard", f"{part}/3"]) == 0
    manifests = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("inference_*_of_3_run.json"))]
    counts = [manifest["cases"]["segmented"] for manifest in manifests]
    assert (len(counts), sum(counts)) == (3, len(list(folder.iterdir())))
    assert len(list(tmp_path.glob("*_seg.nii.gz"))) == sum(counts)
    assert main(["segment", BUNDLE, str(folder), "-o", str(tmp_path), "--shard", "4/3"]) == 2


def test_several_files_are_several_images_unless_they_are_the_channels(phantom, tmp_path, capsys):
    scans = [case["image"] for case in cases(phantom(f"{BUNDLE}_segmentation"), "training")[:2]]
    assert main(["segment", BUNDLE, *scans, "-o", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*_seg.nii.gz"))) == 2
    channels = cases(phantom("brats_mri_egcnn_segmentation"), "training")[0]["image"]
    weights = str(find_bundle(BUNDLE) / "models" / "model.pt")
    command = ["segment", "brats_mri_egcnn", *channels, "-o", str(tmp_path), "--checkpoint", weights, "--show"]
    assert main(command) == 0
    assert f"--input '{channels}'".replace("'", "") in capsys.readouterr().out.replace("'", "").replace('"', "")


@pytest.mark.parametrize("ending", ["ts", "onnx", "pt2"])
def test_a_network_is_exported_by_the_ending_of_the_file(tmp_path, ending):
    assert main(["export", BUNDLE, str(tmp_path / f"model.{ending}")]) == 0
    assert (tmp_path / f"model.{ending}").stat().st_size > 10_000
    assert main(["export", BUNDLE, str(tmp_path / "model.pth")]) == 2


@pytest.mark.slow  # it installs the package
def test_the_wheel_works_in_an_empty_folder(tmp_path):
    root = find_bundle(BUNDLE).parents[1]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(root)], check=True)
    (wheel,) = tmp_path.glob("monai_attn-*-py3-none-any.whl")
    assert wheel.stat().st_size < 25e6
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    (work := tmp_path / "work").mkdir()
    for words in (
        "list",
        f"phantom {BUNDLE} -o data --cases 3",
        f"check {BUNDLE} -d data",
        f"segment {BUNDLE} data/images -o out",
    ):
        command = [sys.executable, "-m", "monai_attn", *words.split()]
        done = subprocess.run(
            command, cwd=work, env={"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert len(list((work / "out").glob("*_seg.nii.gz"))) == 3
