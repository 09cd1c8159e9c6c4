# SPDX-License-Identifier: Apache-2.0
import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, load
from monai.transforms import LoadImage, Orientation
from monai.utils import ensure_tuple
from PIL import Image

from monai_attn.data import case_name, cases
from monai_attn.errors import CasesError, root_cause
from monai_attn.run.workflow import check_bundle
from monai_attn.visualize import GateMaps

from ..conftest import read_csv
from .conftest import in_ras, mostly_slow, one_file, save_volume


def test_training_leaves_weights_curves_and_a_manifest(trained):
    assert {"model.pt", "model_final.pt", "curves.csv", "curves.png", "train.log", "train_run.json"} <= {
        path.name for path in trained.output.iterdir()
    }
    assert f"{trained.metric}: " in (trained.output / "train.log").read_text()
    manifest = json.loads((trained.output / "train_run.json").read_text())
    assert manifest["state"] == "finished"
    assert 0 <= manifest["best"] <= 1
    state = torch.load(trained.weights, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())


@mostly_slow
def test_evaluation_writes_a_line_for_each_case_and_a_column_for_each_structure(trained, tmp_path):
    trained.run("train", "evaluate", output_dir=str(tmp_path), ckpt_dir=str(trained.output))
    rows = read_csv(tmp_path / f"{trained.metric}_raw.csv")
    held_out = cases(trained.data, "validation")
    entries = trained.entries("train")
    names = entries.get("region_names", entries["structures"])
    if "scored_classes" in entries:
        names = [name for name in names if name != "below the retina"]
    assert [row["filename"] for row in rows] == [case_name(ensure_tuple(case["image"])[0]) for case in held_out]
    assert list(rows[0]) == ["filename", *names, "mean"]
    assert (tmp_path / f"{rows[0]['filename']}_overlay.png").is_file()


def test_the_guard_finds_nothing_wrong_with_good_data(trained):
    checked = list(check_bundle(str(trained.root), dataset_dir=str(trained.data)))
    assert checked[-1].startswith("6 cases: 6 can be used")
    assert list(check_bundle(str(trained.root), images=[str(trained.data)]))[-1].endswith("0 cannot; 0 with warnings")


def segment(trained, image, output):
    files = [str(file) for file in ensure_tuple(image)]
    source = files if len(files) > 1 else files[0]
    trained.run("inference", input=source, checkpoint=str(trained.weights), output_dir=str(output))
    return output / f"{case_name(files[0])}_seg{trained.suffix}"


@mostly_slow
def test_a_segmentation_lies_on_the_grid_of_its_file_however_that_is_stored(trained, tmp_path):
    if trained.suffix != ".nii.gz":
        pytest.skip("pictures have no orientation")
    case = cases(trained.data, "validation")[0]
    original = LoadImage(image_only=True, ensure_channel_first=True)(case["image"])
    expected = nibabel.load(segment(trained, case["image"], tmp_path / "original"))
    for axcodes in ("LPS", "PIR"):
        turned = Orientation(axcodes=axcodes)(original)
        path = tmp_path / f"{axcodes}.nii.gz"
        save_volume(turned, path)
        result = nibabel.load(segment(trained, path, tmp_path / "turned"))
        assert result.shape == tuple(turned.shape[1:])
        assert np.allclose(result.affine, turned.affine, atol=1e-4)
        assert result.get_data_dtype() == np.uint8
        assert np.array_equal(in_ras(result), np.asarray(expected.dataobj))


def written(folder):
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*_seg.*")}


@mostly_slow
def test_a_bad_case_is_passed_over_and_made_up_for_by_the_same_command(trained, tmp_path, monkeypatch, capsys):
    image = one_file(cases(trained.data, "validation")[0]["image"], tmp_path)
    ending = "".join(image.suffixes)
    names = ["a/t1", "b # ü/t1", "b # ü/t2"]
    for name in names:
        path = tmp_path / "in" / f"{name}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.read_bytes())
    path.write_bytes(path.read_bytes()[:30])
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    out = tmp_path / "out"
    call = {"input": str(tmp_path / "in"), "output_dir": str(out), "checkpoint": str(trained.weights)}

    with pytest.raises(RuntimeError) as caught:
        trained.run("inference", **call)
    cause = root_cause(caught.value)
    assert isinstance(cause, CasesError)
    assert (cause.finished, [failure.what for failure in cause.failures]) == (2, [str(path)])
    first = written(out)
    assert set(first) == {f"{name}_seg{trained.suffix}" for name in names[:2]}
    assert all((out / f"{name}_overlay.png").is_file() for name in names[:2])
    manifest = json.loads((out / "inference_run.json").read_text())
    assert (manifest["state"], manifest["cases"]["segmented"]) == ("incomplete", 2)
    assert manifest["cases"]["failed"][0]["what"] == str(path)

    path.write_bytes(image.read_bytes())
    trained.run("inference", **call)
    assert "2 of 3 cases are finished" in capsys.readouterr().err
    second = written(out)
    assert {name: second[name] for name in first} == first
    assert set(second) - set(first) == {f"{names[2]}_seg{trained.suffix}"}

    assert (out / f"{names[2]}_overlay.png").is_file()
    assert not [file for file in tmp_path.rglob("*") if file.name.startswith(".")]
    assert list((tmp_path / "cwd").iterdir()) == []


@mostly_slow
def test_attention_maps_lie_on_the_images_grid_and_are_made_up_for(trained, tmp_path, capsys):
    image = one_file(cases(trained.data, "validation")[0]["image"], tmp_path)
    call = {"input": str(image), "output_dir": str(tmp_path / "out"), "checkpoint": str(trained.weights)}
    out, picture = tmp_path / "out", tmp_path / "out" / f"{case_name(image)}_attention.png"
    trained.run("inference", **call)
    without = written(out)
    assert list(out.glob("*_attention*")) == []

    trained.run("inference", **call, save_attention=True)
    assert "are finished" not in capsys.readouterr().err  # a result without its maps is none
    start = f"{case_name(image)}_attention_"
    maps = {path.name.removeprefix(start): path for path in out.glob(f"{start}*")}
    network = trained.parsed("inference").get_parsed_content("network_def")
    assert sorted(maps) == sorted(f"{name}{trained.suffix}" for name in GateMaps(network).names)
    assert picture.stat().st_size < 300_000
    for path in maps.values():
        if trained.suffix == ".png":
            assert Image.open(path).size == Image.open(image).size
            assert Image.open(path).mode == "L"
        else:
            assert nibabel.load(path).shape == nibabel.load(image).shape[:3]
            assert np.allclose(nibabel.load(path).affine, nibabel.load(image).affine, atol=1e-4)
    assert written(out) != without

    picture.unlink()  # as where the run was killed
    trained.run("inference", **call, save_attention=True)
    assert picture.is_file()
    assert "are finished" not in capsys.readouterr().err
    last = written(out)
    for switch in (True, False):
        trained.run("inference", **call, save_attention=switch)
        assert "1 of 1 cases are finished" in capsys.readouterr().err
    assert written(out) == last


@pytest.mark.parametrize(("workflow_type", "name"), [("train", "train"), ("infer", "inference")])
def test_monai_finds_all_properties(trained, tmp_path, workflow_type, name):
    places = {"bundle_root": str(trained.root), "dataset_dir": str(trained.data), "output_dir": str(tmp_path)}
    workflow = ConfigWorkflow(trained.config(name)[0], workflow_type=workflow_type, initialize=[], **places)
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.parametrize("workflow_type", ["train", "inference"])
def test_monai_loads_the_network_from_another_folder(trained, tmp_path, monkeypatch, workflow_type):
    monkeypatch.chdir(tmp_path)
    network = load(
        trained.root.name,
        bundle_dir=str(trained.root.parent),
        workflow_type=workflow_type,
        model_file=str(trained.weights),
        net_override=trained.narrow,
        source="github",
    )
    saved = torch.load(trained.weights, weights_only=True)
    assert all(torch.equal(value.cpu(), saved[name]) for name, value in network.state_dict().items())
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_short_on_the_screen_and_whole_in_the_log(train_bundle, tmp_path):
    trained = train_bundle("hippocampus_mri_scse_segmentation")  # starts a process, and the session is the same in all
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", *trained.config("train")]
    command += ["--bundle_root", str(tmp_path), "--dataset_dir", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    message = done.stderr[done.stderr.index("monai-attn:") :].splitlines()
    assert len(message) == 4
    assert str(tmp_path / "nowhere") in message[0]
    assert "Traceback" not in done.stderr + done.stdout
    assert "Traceback" in (tmp_path / "eval" / "train.log").read_text()
