# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch

from monai_attn.handlers import EpochSeed

from ..conftest import BUNDLES as ROOTS

QUICK_START = "hippocampus_mri_scse_segmentation"
BUNDLES = [pytest.param(root.name, marks=[] if root.name == QUICK_START else pytest.mark.slow) for root in ROOTS]


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
    assert "resuming after epoch 1 of 2" in log
