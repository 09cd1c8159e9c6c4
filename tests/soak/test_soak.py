# SPDX-License-Identifier: Apache-2.0
"""The soak must see what is lost: here something is."""

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
    torch.save({"weight": torch.arange(6.0)}, folder / "model.pt")
    torch.save({"trainer": {"epoch": 2}, "parts": [torch.zeros(2)], "lr": 0.1}, folder / "checkpoint_latest.pt")
    (folder / "curves.csv").write_text("iteration,name,value\n1,loss,0.5\n2,loss,0.25\n")
    write_result(folder)
    Image.new("L", (40, 30)).save(folder / "a_overlay.png")
    write_manifest(folder)
    return folder


@pytest.fixture
def run(reference, tmp_path) -> Path:
    """A run that came to the same."""
    return shutil.copytree(reference, tmp_path / "run")


def write_result(folder, value=1, place=1.0, dtype=np.uint8):
    voxels = np.random.RandomState(0).randint(0, 2, (9, 8, 7)).astype(dtype)
    voxels[0, 0, 0] = value
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([place, 1, 1, 1])), folder / "a_seg.nii.gz")


def write_manifest(folder, state="finished", best=0.75):
    (folder / "train_run.json").write_text(json.dumps({"state": state, "best": best, "seconds": id(folder)}))


def cut(path, end):
    path.write_bytes(path.read_bytes()[:end])


def flip_a_weight(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(6.0).numpy().tobytes()) + 4] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("a_seg.nii.gz", lambda path: cut(path, -8)),  # its checksum
        ("a_seg.nii.gz", lambda path: cut(path, 0)),
        ("a_seg.nii.gz", lambda path: write_result(path.parent, value=2)),
        ("a_seg.nii.gz", lambda path: write_result(path.parent, place=2.0)),
        ("a_seg.nii.gz", lambda path: write_result(path.parent, dtype=np.int16)),
        ("train_run.json", lambda path: cut(path, -3)),
        ("model.pt", flip_a_weight),
        ("checkpoint_latest.pt", lambda path: cut(path, 500)),
        ("curves.csv", lambda path: cut(path, -4)),
        ("curves.csv", lambda path: cut(path, 0)),
        ("a_overlay.png", lambda path: cut(path, -30)),
        ("previous_1", lambda path: path.mkdir()),
    ],
)
def test_what_is_damaged_is_seen_after_a_kill_and_at_the_end(run, reference, name, harm):
    harm(run / name)
    for look in (damaged, lost):
        assert [problem.split(":")[0] for problem in look(run, reference)] == [name]


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("model.pt", lambda path: torch.save({"weight": torch.arange(6.0) + 1e-6}, path)),
        ("checkpoint_latest.pt", lambda path: torch.save({"trainer": {"epoch": 1}}, path)),
        ("train_run.json", lambda path: write_manifest(path.parent, best=0.7)),
        ("curves.csv", lambda path: path.write_text("iteration,name,value\n1,loss,0.5\n")),
        ("a_overlay.png", lambda path: Image.new("L", (40, 31)).save(path)),
    ],
)
def test_a_whole_file_that_is_another_one_is_seen_at_the_end(run, reference, name, harm):
    harm(run / name)
    assert damaged(run, reference) == []
    assert [problem.split(":")[0] for problem in lost(run, reference)] == [name]


def test_a_run_may_lack_files_and_leave_drafts_and_logs_until_it_ends(run, reference):
    (run / "train.log").write_text("anything")
    write_manifest(run)  # at another time
    assert lost(run, reference) == []
    (run / "a_seg.nii.gz").rename(run / ".partial-7-a_seg.nii.gz")
    write_manifest(run, "running")
    assert damaged(run, reference) == []
    assert [problem.split(": it ")[0] for problem in lost(run, reference)] == [
        "train_run.json: ValueError", "a_seg.nii.gz", ".partial-7-a_seg.nii.gz",
    ]  # fmt: skip


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
raise SystemExit(2)
"""
        return subprocess.Popen([sys.executable, "-c", program], cwd=folder, start_new_session=True)


@needs_process_groups
def test_what_a_kill_has_damaged_and_a_run_that_fails_are_counted_as_lost(tmp_path, reference, capsys):
    for path in reference.iterdir():
        if path.name != "curves.csv":
            path.unlink()
    kills = soak.Soak(tmp_path, seed=0)
    stage = Careless("train", {}, 1, lambda folder: 0, ("signal",))
    kills.kill(stage, reference, soak.Run(0, 0.0, 0.0, ""), 1)
    text = kills.table(3.0)
    assert text.splitlines()[:3] == [
        "train     writing signal                 1 kills",
        "in all                                   1 kills in 1 runs and 3 s",
        f"1 kills cut off a file that was being written; {len(kills.problems)} losses",
    ]
    assert all(part in text for part in ("curves.csv", ".partial-1-signal", "exit code 2"))
    printed = capsys.readouterr().out
    assert printed.index("writing signal") < printed.index("LOST curves.csv") < printed.index("is compared")


@pytest.mark.slow  # a minute: trains and segments in processes of their own
@needs_process_groups
def test_a_short_soak_loses_nothing():
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), "--kills", "2", "--seed", "1"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 kills" in ended.stdout
    assert "0 losses" in ended.stdout
