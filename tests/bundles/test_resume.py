# SPDX-License-Identifier: Apache-2.0
"""A bundle whose training is stopped, and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
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


def launch(bundle, folder: Path, **overrides) -> subprocess.Popen[str]:
    return bundle.launch(["train"], output_dir=folder, ckpt_dir=folder, epochs=4, **overrides)


@pytest.mark.slow
def test_a_killed_training_goes_on_bitwise(train_bundle, tmp_path):
    bundle = train_bundle(BUNDLES[0])
    through, killed = tmp_path / "through", tmp_path / "killed"
    screen, _ = launch(bundle, through).communicate()
    assert (through / "model_final.pt").is_file(), screen

    job = launch(bundle, killed)
    while not (killed / "checkpoint_latest.pt").exists():
        assert job.poll() is None
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.communicate(timeout=300)
    assert job.returncode != 0
    assert not (killed / "model_final.pt").exists()
    torch.load(killed / "checkpoint_latest.pt", weights_only=True)

    resumed = launch(bundle, killed, resume="auto")
    screen, _ = resumed.communicate()
    assert resumed.returncode == 0, screen
    assert_same(through, killed)
