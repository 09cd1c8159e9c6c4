# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import subprocess

import pytest

from monai_attn.errors import ConfigError, DataError
from monai_attn.reproduce import CellError


def option(command, name):
    return command[command.index(f"--{name}") + 1]


def test_a_cell_is_a_training_and_an_evaluation_by_the_bundles_configurations(make_grid):
    grid = make_grid(seeds=(0, 7), overrides=("batch_size=2",), section="test")
    cell = grid.cells[-1]
    assert cell.name == "SD-Net + scSE, seed 7"
    train, evaluate = cell.commands()
    assert train[1:4] == ["-m", "monai.bundle", "run"]
    assert option(train, "config_file") == "bundles/brain_mri_scse_segmentation/configs/train.json"
    assert "evaluate.json" in option(evaluate, "config_file")
    for command in (train, evaluate):
        assert [option(command, name) for name in ("se", "seed", "batch_size", "dataset_dir")] == [
            "scse",
            "7",
            "2",
            "data",
        ]
        assert option(command, "ckpt_dir") == option(command, "output_dir") == str(cell.folder)
    assert option(train, "resume") == "auto"
    assert option(evaluate, "val_section") == "test"
    assert "--val_section" not in train  # which chooses its weights by another section


def test_an_entry_that_is_none_is_given_in_a_form_that_monai_does_not_drop(make_grid):
    assert option(make_grid().cells[0].commands()[0], "se") == "$None"


def test_several_processes_are_started_by_torchrun(make_grid):
    for command in make_grid(processes=4).cells[0].commands():
        assert command[2:5] == ["torch.distributed.run", "--standalone", "--nproc_per_node=4"]
        assert "multi_gpu_" in option(command, "config_file").split(",")[-1]


def test_all_methods_of_a_seed_come_before_the_next_seed(make_grid):
    assert [cell.seed for cell in make_grid(seeds=(3, 5)).cells] == [3, 3, 3, 5, 5, 5]


def test_a_cell_of_other_settings_is_not_taken_for_finished(make_grid, finish):
    cell = make_grid().cells[0]
    assert not cell.is_finished()
    finish(cell, {"mean": [0.5]})
    assert cell.is_finished()
    with pytest.raises(ConfigError, match=r"sd_net/seed_0\n.*made with other settings: lr was not given"):
        make_grid(overrides=("lr=0.1",)).cells[0].is_finished()
    manifest = cell.folder / "evaluate_run.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"state": "failed"}))
    assert not cell.is_finished()
    assert cell.is_finished("train")


def test_only_what_is_not_done_is_run_and_an_error_names_the_log(make_grid, monkeypatch, finish):
    ran = []

    def run(command, stdout, **_):
        ran.append(command)
        stdout.write("monai_attn: cannot use x\n  problem: y\n  fix:     z\n" * (len(ran) == 1))
        return subprocess.CompletedProcess(command, returncode=2)

    monkeypatch.setattr(subprocess, "run", run)
    cell = make_grid().cells[0]
    with pytest.raises(CellError, match="`train` ended with exit code 2: cannot use x\n  problem: y"):
        cell.run()
    assert ran == [cell.commands()[0]]
    finish(cell, {"mean": [0.5]})
    cell.run()
    assert len(ran) == 1
    (cell.folder / "evaluate_run.json").unlink()
    # the second command said nothing: the log's first error is not its own
    with pytest.raises(CellError, match=r"`evaluate` ended with exit code 2: see .*cell\.log"):
        cell.run()
    assert ran[1:] == [cell.commands()[1]]


def test_a_budget_has_room_for_one_more_of_the_longest_cell(make_grid, finish):
    grid = make_grid()
    assert grid.next_fits(0.1, [])
    for cell, minutes in zip(grid.cells, (10.0, 20.0)):
        finish(cell, {"mean": [0.5]}, minutes)
    assert grid.next_fits(50 / 60, grid.cells[:2])
    assert not grid.next_fits(49 / 60, grid.cells[:2])


def test_scores_that_cannot_be_read_name_the_file_and_the_mend(make_grid, finish):
    cell = make_grid().cells[0]
    finish(cell, {"CSF": [0.5, 0.7], "mean": [0.5, 0.7]})
    assert cell.scores("val_mean_dice")["CSF"] == {"case_0": 0.5, "case_1": 0.7}
    with pytest.raises(DataError, match=r"val_asd_raw.csv\n.*\n.*remove the cell's folder"):
        cell.scores("val_asd")


def test_rows_and_overrides_that_there_are_not_are_refused_at_once(make_grid):
    with pytest.raises(ConfigError, match="give one of 'SD-Net', 'SD-Net, 4 encoders and decoders', 'SD-Net"):
        make_grid(rows=("U-Net",))
    with pytest.raises(ConfigError, match="did you mean --epochs"):
        make_grid(overrides=("epoch=3",))
    assert [cell.row.name for cell in make_grid(rows=("SD-Net",)).wanted] == ["SD-Net"]
