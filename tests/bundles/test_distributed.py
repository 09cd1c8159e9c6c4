# SPDX-License-Identifier: Apache-2.0
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from monai_attn.data import cases

from ..conftest import BUNDLES, TrainedBundle, read_csv

QUICK_START, EDGES = "hippocampus_mri_scse_segmentation", "hippocampus_mri_egcnn_segmentation"
TRAIN, EVALUATE = ("train", "multi_gpu_train"), ("train", "evaluate", "multi_gpu_evaluate")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def make_bundle(phantom, tmp_path_factory):
    """A bundle with three cases to train on and three, which two processes cannot share evenly, to validate on."""

    def make(name: str) -> TrainedBundle:
        folder = tmp_path_factory.mktemp(name)
        root = next(root for root in BUNDLES if root.name == name)
        bundle = TrainedBundle(root, Path(shutil.copytree(phantom(name), folder / "data")), folder / "out")
        listing = json.loads((bundle.data / "dataset.json").read_text())
        everything = listing["training"] + listing["validation"]
        listing |= {"training": everything[:3], "validation": everything[3:]}
        (bundle.data / "dataset.json").write_text(json.dumps(listing))
        return bundle

    return make


def finish(job: subprocess.Popen[str], code: int = 0) -> str:
    screen, _ = job.communicate(timeout=500)
    assert job.returncode == code, screen
    return screen


def files_in(folder: Path) -> Counter[str]:
    names = (str(path.relative_to(folder)) for path in folder.rglob("[!.]*") if path.is_file())
    return Counter(re.sub(r"^events\.out\..*", "events", name) for name in names)


def tables_in(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.csv")}


@pytest.mark.parametrize("name", [root.name for root in BUNDLES])
def test_two_processes_train_and_evaluate_and_write_what_one_does(make_bundle, tmp_path, name):
    bundle = make_bundle(name)
    finish(bundle.launch(TRAIN, 2, output_dir=bundle.output, ckpt_dir=bundle.output))
    written = [
        "model.json",
        "model.pt",
        "model_final.pt",
        "checkpoint_latest.pt",
        "curves.csv",
        "curves.png",
        "train.log",
    ]
    assert files_in(bundle.output) == Counter([*written, "train_run.json", *["events"] * 4])
    manifest = json.loads((bundle.output / "train_run.json").read_text())
    assert (manifest["state"], manifest["processes"]) == ("finished", 2)

    finish(bundle.launch(EVALUATE, 2, output_dir=tmp_path / "two", ckpt_dir=bundle.output))
    bundle.run("train", "evaluate", output_dir=str(tmp_path / "one"), ckpt_dir=str(bundle.output))
    assert files_in(tmp_path / "two") == files_in(tmp_path / "one")
    assert tables_in(tmp_path / "two") == tables_in(tmp_path / "one")
    results = [json.loads((tmp_path / n / "evaluate_run.json").read_text())["results"] for n in ("one", "two")]
    assert results[1] == pytest.approx(results[0], nan_ok=True)
    # the validation in the training was one of the same network on the same cases
    assert manifest["best"] == pytest.approx(results[0][bundle.metric], abs=1e-6)
    assert len(read_csv(tmp_path / "two" / f"{bundle.metric}_raw.csv")) == 3


@pytest.fixture(scope="module", params=[QUICK_START, EDGES])
def recorded(request, make_bundle) -> TrainedBundle:
    """A bundle that two processes trained for three epochs, with a record of each."""
    bundle = make_bundle(request.param)
    finish(launch_recorded(bundle, bundle.output, "record"))
    return bundle


def launch_recorded(bundle: TrainedBundle, output: Path, record: str, **overrides: str) -> subprocess.Popen[str]:
    recorder = {"_target_": "recorder.Recorder", "folder": str(output / record), "network": "@network"}
    overlay = bundle.data / f"{record}.json"
    overlay.write_text(json.dumps({"+train#handlers": [recorder]}))
    places = {"output_dir": output, "ckpt_dir": output}
    return bundle.launch(("train", str(overlay), "multi_gpu_train"), 2, **places, epochs=3, **overrides)


def assert_equal(first: Path, second: Path) -> None:
    ours, theirs = (torch.load(path, weights_only=True) for path in (first, second))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_processes_share_the_cases_of_an_epoch_anew_and_end_with_the_same_weights(recorded):
    epochs = [json.loads((recorded.output / "record" / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    training = list(range(len(cases(recorded.data, "training"))))
    repeats = recorded.small("train").get("slices_per_volume", 1)
    assert len(training) * repeats == {QUICK_START: 6, EDGES: 3}[recorded.root.name]
    for epoch in ("1", "2", "3"):
        first, second = (seen[epoch] for seen in epochs)
        assert len(first) == len(second)
        surplus = Counter(first + second)
        surplus.subtract(training * repeats)
        assert min(surplus.values()) == 0
        assert surplus.total() == len(training) * repeats % 2  # the sampler makes the parts equally long
    assert len({tuple(seen[epoch]) for seen in epochs for epoch in seen}) > 2
    for weights in (recorded.output / "record" / "rank1.pt", recorded.output / "model_final.pt"):
        assert_equal(recorded.output / "record" / "rank0.pt", weights)


@pytest.mark.fault(37)
@pytest.mark.fault(64)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs a list of the processes that one started")
def test_a_killed_process_stops_the_job_which_goes_on_bitwise(recorded, tmp_path):
    job = launch_recorded(recorded, tmp_path, "killed")
    while not (tmp_path / "checkpoint_latest.pt").exists():
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.01)
    processes = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(processes[-1]), signal.SIGKILL)
    job.communicate(timeout=300)
    assert job.returncode != 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes)
    assert not (tmp_path / "model_final.pt").exists()

    finish(launch_recorded(recorded, tmp_path, "resumed", resume="auto"))
    log = (tmp_path / "train.log").read_text()
    assert re.search("resuming after epoch [12] of 3", log)
    for name in ("model.pt", "model_final.pt", "record/rank1.pt"):
        assert_equal(recorded.output / name, tmp_path / name.replace("record", "resumed"))
    assert (recorded.output / "curves.csv").read_text() == (tmp_path / "curves.csv").read_text()


def test_a_job_with_fewer_cases_than_processes_ends_with_the_fix_on_the_screen(make_bundle, tmp_path):
    bundle = make_bundle(QUICK_START)
    listing = json.loads((bundle.data / "dataset.json").read_text())
    listing["validation"] = listing["validation"][:1]
    (bundle.data / "dataset.json").write_text(json.dumps(listing))
    screen = finish(bundle.launch(TRAIN, 2, output_dir=tmp_path, ckpt_dir=tmp_path), 1)
    assert "problem: there are only 1 cases for them\n  fix:     start fewer processes" in screen
    assert "ConfigError" in (tmp_path / "train.log").read_text()


@pytest.fixture
def folder(make_bundle, tmp_path) -> tuple[TrainedBundle, Path]:
    bundle = make_bundle(QUICK_START)
    torch.save(bundle.parsed("inference").get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    images = [str(case["image"]) for section in ("training", "validation") for case in cases(bundle.data, section)]
    for number, image in enumerate(images[:5]):
        path = tmp_path / "in" / f"folder {number // 2}" / f"scan{number % 2}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, path)
    return bundle, tmp_path


def test_two_processes_share_a_folder_and_account_for_it_as_one_does(folder):
    bundle, place = folder
    images = sorted((place / "in").rglob("*.nii.gz"))
    broken = [images[1], images[4]]  # one for each process
    whole = {path: path.read_bytes() for path in broken}
    for path in broken:
        path.write_bytes(whole[path][:50])
    call = {"input": place / "in", "checkpoint": place / "model.pt"}

    screen = finish(bundle.launch(["inference"], 2, **call, output_dir=place / "two"), 1)
    assert screen.count("2 of 5 cases have no result") == 1
    assert re.search(r"rank +: 0 .*\n +exitcode +: 3 ", screen)  # of the launcher itself it is 1
    assert "Traceback" not in screen.split("monai-attn:")[0]
    manifest = json.loads((place / "two" / "inference_run.json").read_text())
    assert (manifest["state"], manifest["processes"]) == ("incomplete", 2)
    assert (manifest["cases"]["finished before"], manifest["cases"]["segmented"]) == (0, 3)
    assert [failure["what"] for failure in manifest["cases"]["failed"]] == [str(path) for path in broken]
    log = (place / "two" / "inference.log").read_text()
    assert all(f"{path} cannot be prepared" in log for path in broken)
    first = {path: path.stat().st_mtime_ns for path in (place / "two").rglob("*_seg.nii.gz")}
    assert len(first) == 3

    # one case is left, so that one of the processes has none
    broken[0].write_bytes(whole[broken[0]])
    broken[1].unlink()
    screen = finish(bundle.launch(["inference"], 2, **call, output_dir=place / "two"))
    assert screen.count("3 of 4 cases are finished") == 1
    assert json.loads((place / "two" / "inference_run.json").read_text())["cases"]["segmented"] == 1
    assert {path: path.stat().st_mtime_ns for path in first} == first

    bundle.run("inference", **{key: str(value) for key, value in call.items()}, output_dir=str(place / "one"))
    assert files_in(place / "two") == files_in(place / "one")
    for path in (place / "one").rglob("*_seg.nii.gz"):
        ours, theirs = nibabel.load(path), nibabel.load(place / "two" / path.relative_to(place / "one"))
        assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj))
        assert np.array_equal(ours.affine, theirs.affine)
        assert ours.header["descrip"] == theirs.header["descrip"]


def test_the_commands_run_in_two_processes(make_bundle, tmp_path):
    bundle = make_bundle(QUICK_START)
    out, images = tmp_path / "out", bundle.data / "images"
    for command in (
        ["train", QUICK_START, "-d", bundle.data, "-o", out, "--epochs", "1"],
        ["evaluate", QUICK_START, "-d", bundle.data, "-o", out, "--checkpoint", out / "model.pt"],
        ["segment", QUICK_START, images, "-o", out, "--checkpoint", out / "model.pt"],
    ):
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            "-m",
            "monai_attn",
        ]
        job = subprocess.run([*start, *map(str, command)], capture_output=True, text=True)
        assert job.returncode == 0, job.stderr
    assert len(list(out.glob("*_seg.nii.gz"))) == len(list(images.iterdir()))
