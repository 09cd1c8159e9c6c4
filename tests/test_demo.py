# SPDX-License-Identifier: Apache-2.0
import json
import sys

import demo
import pytest


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, download, **__):
        raise Exception("no route to host\nand a long story") if download else AssertionError("nothing to download")

    monkeypatch.setattr(demo, "DecathlonDataset", refuse)


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
    (tmp_path / "hippocampus").mkdir()
    (tmp_path / "hippocampus" / "dataset.json").write_text("{}")
    assert demo.find_data(tmp_path) == tmp_path / "hippocampus"  # prepared data come first


@pytest.mark.usefixtures("no_network")
def test_the_demo_leaves_weights_tables_and_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "PHANTOM_CASES", 5)
    monkeypatch.setenv("MONAI_DATA_DIRECTORY", str(tmp_path / "data"))
    output = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["demo", "-o", str(output), "--epochs", "1"])
    demo.main()
    files = {str(path.relative_to(output)) for path in output.rglob("*")}
    assert {"model_final.pt", "val_mean_dice_raw.csv", "curves.png", "summary.png"} <= files
    assert {"segmentation/phantom_004_seg.nii.gz", "segmentation/phantom_004_attention.png"} <= files
    printed = capsys.readouterr().out
    assert "NO REAL DATA" in printed
    assert printed.count("\nmonai-attn ") == 3
    listing = tmp_path / "data" / "phantom_hippocampus" / "dataset.json"
    made = listing.stat().st_mtime_ns
    assert len(json.loads(listing.read_text())["training"]) == 4
    demo.find_data(tmp_path / "data")
    assert listing.stat().st_mtime_ns == made
