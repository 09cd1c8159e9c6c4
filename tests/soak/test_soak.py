# SPDX-License-Identifier: Apache-2.0
"""The soak must see what is lost: here something is."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import soak
import torch
from lost import damaged, lost
from PIL import Image

needs_process_groups = pytest.mark.skipif(os.name != "posix", reason="kills groups of processes")


@pytest.fixture
def reference(tmp_path) -> Path:
    """What a training and an inference leave, in one folder."""
    folder = tmp_path / "reference"
    folder.mkdir()
    for name in ("model.pt", "model_final.pt"):
        torch.save({"weight": torch.arange(6.0)}, folder / name)
    torch.save({"trainer": {"epoch": 2}, "parts": [torch.zeros(2)], "lr": 0.1}, folder / "checkpoint_latest.pt")
    write_curves(folder, [(1, "loss", 0.5), (2, "loss", 0.25), (2, "dice", 0.75)])
    write_result(folder)
    Image.new("L", (40, 30)).save(folder / "a_overlay.png")
    write_manifest(folder)
    (folder / "train.log").write_text("whatever")
    return folder


@pytest.fixture
def run(reference, tmp_path) -> Path:
    """A run that came to the same."""
    return shutil.copytree(reference, tmp_path / "run")


def write_curves(folder, rows):
    with (folder / "curves.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("iteration", "name", "value"), *rows])


def write_result(folder, value=1, place=1.0, dtype=np.uint8):
    voxels = np.random.RandomState(0).randint(0, 2, (9, 8, 7)).astype(dtype)
    voxels[0, 0, 0] = value
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([place, 1, 1, 1])), folder / "a_seg.nii.gz")


def write_manifest(folder, state="finished", best=0.75):
    (folder / "train_run.json").write_text(json.dumps({"state": state, "best": best, "seconds": id(folder)}))


def cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(content)


def place_of_weights(folder):
    return (folder / "model.pt").read_bytes().index(torch.arange(6.0).numpy().tobytes()) + 4


HARMS = {
    "a result that is cut off": ("a_seg.nii.gz", lambda run: cut(run / "a_seg.nii.gz", -40)),
    "a result without its checksum": ("a_seg.nii.gz", lambda run: cut(run / "a_seg.nii.gz", -8)),
    "a result with a wrong checksum": ("a_seg.nii.gz", lambda run: flip(run / "a_seg.nii.gz", -8)),
    "an empty result": ("a_seg.nii.gz", lambda run: cut(run / "a_seg.nii.gz", 0)),
    "a result with another voxel": ("a_seg.nii.gz", lambda run: write_result(run, value=2)),
    "a result elsewhere": ("a_seg.nii.gz", lambda run: write_result(run, place=2.0)),
    "a result of another type": ("a_seg.nii.gz", lambda run: write_result(run, dtype=np.int16)),
    "a torn manifest": ("train_run.json", lambda run: cut(run / "train_run.json", -3)),
    "damaged weights": ("model.pt", lambda run: flip(run / "model.pt", place_of_weights(run))),
    "a checkpoint that is cut off": ("checkpoint_latest.pt", lambda run: cut(run / "checkpoint_latest.pt", 500)),
    "empty weights": ("model.pt", lambda run: cut(run / "model.pt", 0)),
    "a torn row of curves": ("curves.csv", lambda run: cut(run / "curves.csv", -4)),
    "an empty table of curves": ("curves.csv", lambda run: cut(run / "curves.csv", 0)),
    "another curve": ("curves.csv", lambda run: write_curves(run, [(1, "loss", 0.6)])),
    "half a picture": ("a_overlay.png", lambda run: cut(run / "a_overlay.png", -30)),
    "a file too many": ("b_seg.nii.gz", lambda run: shutil.copy(run / "a_seg.nii.gz", run / "b_seg.nii.gz")),
    "files moved aside": ("previous_1", lambda run: (run / "previous_1").mkdir()),
}


def test_nothing_is_wrong_with_a_run_that_came_to_the_same(run, reference):
    write_manifest(run)  # at another time
    (run / "train.log").write_text("anything else")
    (run / "events.out.tfevents.2").touch()
    assert damaged(run, reference) == []
    assert lost(run, reference) == []


def test_a_run_that_is_killed_may_lack_files_and_leave_drafts_until_it_ends(run, reference):
    (run / "model_final.pt").unlink()
    (run / "a_seg.nii.gz").rename(run / ".partial-7-a_seg.nii.gz")
    write_curves(run, [(1, "loss", 0.5)])
    write_manifest(run, "running")
    assert damaged(run, reference) == []
    assert lost(run, reference) == [
        "a_seg.nii.gz: it is missing",
        "model_final.pt: it is missing",
        ".partial-7-a_seg.nii.gz: it is left over",
    ]


@pytest.mark.parametrize(("name", "harm"), HARMS.values(), ids=HARMS.keys())
def test_what_is_damaged_is_seen_after_a_kill_and_at_the_end(run, reference, name, harm):
    harm(run)
    for look in (damaged, lost):
        found = look(run, reference)
        assert found
        assert {problem.split(":")[0] for problem in found} == {name}


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("model.pt", lambda run: torch.save({"weight": torch.arange(6.0) + 1e-6}, run / "model.pt")),
        ("model_final.pt", lambda run: torch.save({"weights": torch.arange(6.0)}, run / "model_final.pt")),
        ("checkpoint_latest.pt", lambda run: torch.save({"trainer": {"epoch": 1}}, run / "checkpoint_latest.pt")),
        ("train_run.json", lambda run: write_manifest(run, "failed")),
        ("train_run.json", lambda run: write_manifest(run, best=0.7)),
        ("curves.csv", lambda run: write_curves(run, [(1, "loss", 0.5), (2, "loss", 0.25)])),
        ("a_overlay.png", lambda run: Image.new("L", (40, 31)).save(run / "a_overlay.png")),
    ],
)
def test_a_whole_file_that_is_another_one_is_seen_at_the_end(run, reference, name, harm):
    harm(run)
    assert damaged(run, reference) == []
    assert [problem.split(":")[0] for problem in lost(run, reference)] == [name]


class Careless(soak.Stage):
    """A program that leaves half a table when it is killed the first time, and waits for that."""

    def start(self, folder):
        folder.mkdir(exist_ok=True)
        program = """
import time
from pathlib import Path
if not Path("curves.csv").exists():
    Path("curves.csv").write_text("iteration,name,va")
    Path(".partial-1-signal").touch()
    time.sleep(600)
"""
        return subprocess.Popen([sys.executable, "-c", program], cwd=folder, start_new_session=True)


@needs_process_groups
def test_what_a_kill_has_damaged_is_counted_as_lost(tmp_path, reference, monkeypatch, capsys):
    for path in reference.iterdir():
        if path.name != "curves.csv":
            path.unlink()
    monkeypatch.setattr(soak, "draw", lambda *_: soak.Plan(0.0, file="signal"))
    kills = soak.Soak(tmp_path, seed=0)
    stage = Careless("training", "train", {}, 1, lambda folder: 0, ("signal",))
    kills.run(stage, soak.Reference(reference, 1.0, 2.0), 1)
    assert {Path(problem.split(": ")[0]).name for problem in kills.problems} == {"curves.csv", ".partial-1-signal"}
    printed = capsys.readouterr().out
    assert printed.index("writing signal") < printed.index("LOST curves.csv") < printed.index("is compared")
    assert kills.table(3.0).splitlines()[:3] == [
        "training  writing signal                 1 kills",
        "in all                                   1 kills in 1 runs and 3 s",
        f"1 kills cut off a file that was being written; {len(kills.problems)} losses",
    ]


@needs_process_groups
def test_a_run_that_fails_is_counted_as_lost(tmp_path, reference, capsys):
    class Failing(soak.Stage):
        def start(self, folder):
            shutil.copytree(reference, folder)
            return subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])

    kills = soak.Soak(tmp_path, seed=0)
    kills.run(Failing("training", "train", {}, 1, lambda folder: 0, ()), soak.Reference(reference, 1.0, 2.0), 0)
    assert len(kills.problems) == 1
    assert "LOST exit code 2" in capsys.readouterr().out


@pytest.mark.slow
@needs_process_groups
def test_a_short_soak_loses_nothing():
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--kills", "2", "--seed", "1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 kills" in ended.stdout
    assert "0 losses" in ended.stdout
