# SPDX-License-Identifier: Apache-2.0
"""A bundle whose training is stopped, and goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from monai_attn.handlers import EpochSeed

BUNDLES = ["hippocampus_mri_scse_segmentation", "hippocampus_mri_egcnn_segmentation"]


def assert_same(first: Path, second: Path) -> None:
    for name in ("model.pt", "model_final.pt"):
        weights, others = (torch.load(folder / name, weights_only=True) for folder in (first, second))
        assert weights.keys() == others.keys()
        assert all(torch.equal(value, others[key]) for key, value in weights.items())
    manifests = [json.loads((folder / "train_run.json").read_text()) for folder in (first, second)]
    assert manifests[0]["best"] == manifests[1]["best"]
    assert manifests[1]["state"] == "finished"
    assert (first / "curves.csv").read_text() == (second / "curves.csv").read_text()
    assert [path.name for path in second.glob(".partial*")] == []


@pytest.mark.fault(37)
@pytest.mark.parametrize("name", BUNDLES)
def test_a_stopped_training_goes_on_bitwise(train_bundle, tmp_path, monkeypatch, name):
    bundle = train_bundle(name)
    seed = EpochSeed.__call__

    def stop_in_the_second_epoch(handler, engine):
        if engine.state.epoch == 2:
            raise KeyboardInterrupt
        seed(handler, engine)

    def train(folder: str, **overrides):
        output = str(tmp_path / folder)
        bundle.run("train", epochs=2, output_dir=output, ckpt_dir=output, **overrides)

    train("through")
    with monkeypatch.context() as patch:
        patch.setattr(EpochSeed, "__call__", stop_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train("stopped")
    assert not (tmp_path / "stopped" / "model_final.pt").exists()
    train("stopped", resume="auto")
    assert_same(tmp_path / "through", tmp_path / "stopped")
    log = (tmp_path / "stopped" / "train.log").read_text()
    assert "KeyboardInterrupt" in log
    assert "going on after epoch 1 of 2" in log


def launch(bundle, folder: Path, processes: int, *options: str) -> subprocess.Popen:
    names = ["train", "multi_gpu_train"] if processes > 1 else ["train"]
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    command += ["monai.bundle", "run", "--config_file", str(bundle.config(*names)), "--bundle_root", str(bundle.root)]
    small = {**bundle.small("train"), "dataset_dir": bundle.data, "output_dir": folder, "ckpt_dir": folder, "epochs": 4}
    command += [text for key, value in small.items() for text in (f"--{key}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([*command, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs a list of the processes that one started")
@pytest.mark.parametrize(
    "processes", [pytest.param(1, marks=pytest.mark.fault(37)), pytest.param(2, marks=pytest.mark.fault(64))]
)
def test_a_job_of_which_a_process_is_killed_stops_and_goes_on_bitwise(train_bundle, tmp_path, processes):
    bundle = train_bundle(BUNDLES[0])
    through, killed = tmp_path / "through", tmp_path / "killed"
    output, _ = launch(bundle, through, processes).communicate()
    assert (through / "model_final.pt").is_file(), output.decode()

    job = launch(bundle, killed, processes)
    while not (killed / "checkpoint_latest.pt").exists():
        assert job.poll() is None
        time.sleep(0.01)
    started = Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()
    os.kill(int(started[-1]) if processes > 1 else job.pid, signal.SIGKILL)
    job.communicate(timeout=300)
    assert job.returncode != 0
    assert not (killed / "model_final.pt").exists()
    torch.load(killed / "checkpoint_latest.pt", weights_only=True)

    resumed = launch(bundle, killed, processes, "--resume", "auto")
    output, _ = resumed.communicate()
    assert resumed.returncode == 0, output.decode()
    assert_same(through, killed)
