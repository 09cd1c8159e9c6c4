# SPDX-License-Identifier: Apache-2.0
import json
import sys
from pathlib import Path

import pytest

from monai_attn import demo

BUNDLE = Path(__file__).parents[1] / "bundles" / demo.BUNDLE


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, download, **__):
        raise Exception("no route to host\nand a long story") if download else AssertionError("nothing to download")

    monkeypatch.setattr(demo, "DecathlonDataset", refuse)


def test_prepared_data_come_first(tmp_path):
    (tmp_path / "hippocampus").mkdir()
    (tmp_path / "hippocampus" / "dataset.json").write_text("{}")
    assert demo.find_data(tmp_path) == tmp_path / "hippocampus"


@pytest.mark.parametrize("present", [True, False])
def test_the_decathlon_data_are_downloaded_only_if_absent(tmp_path, monkeypatch, present):
    asked = {}
    monkeypatch.setattr(demo, "DecathlonDataset", lambda *args, **options: asked.update(options, args=args))
    if present:
        (tmp_path / "Task04_Hippocampus").mkdir()
        (tmp_path / "Task04_Hippocampus" / "dataset.json").write_text("{}")
    assert demo.find_data(tmp_path) == tmp_path / "Task04_Hippocampus"
    assert asked["args"][:2] == (str(tmp_path), "Task04_Hippocampus")
    assert asked["download"] is not present


@pytest.mark.usefixtures("no_network")
def test_without_a_network_a_phantom_is_made_once_and_said_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "PHANTOM_CASES", 3)
    folder = demo.find_data(tmp_path)
    assert len(json.loads((folder / "dataset.json").read_text())["training"]) == 2
    assert "NO REAL DATA" in capsys.readouterr().out
    made = (folder / "dataset.json").stat().st_mtime_ns
    assert demo.find_data(tmp_path) == folder
    assert (folder / "dataset.json").stat().st_mtime_ns == made


@pytest.mark.usefixtures("no_network")
def test_the_demo_leaves_weights_tables_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "PHANTOM_CASES", 5)
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path / "data"))
    output = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["demo", "--bundle_root", str(BUNDLE), "--output_dir", str(output), "--epochs", "1"]
    )
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    demo.main()
    files = {str(path.relative_to(output)) for path in output.rglob("*")}
    assert {"model_final.pt", "val_mean_dice_raw.csv", "curves.png", "summary.png"} <= files
    assert {"segmentation/phantom_004_seg.nii.gz", "segmentation/phantom_004_attention.png"} <= files
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python -m monai.bundle run")]
    assert len(commands) == 3
