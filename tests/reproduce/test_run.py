# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shlex

import pytest

from monai_attn.cli import main
from monai_attn.errors import CasesError, ConfigError
from monai_attn.reproduce import Cell, CellError, reproduce


def dice(cell):
    return {"anterior": [0.5 + 0.01 * cell.seed] * 6, "mean": [0.5 + 0.01 * cell.seed] * 6}


def test_what_is_finished_is_not_run_again_and_more_seeds_are_added(make_grid, finish_at_once):
    ran = finish_at_once(dice)
    reproduce(make_grid(rows=("SD-Net",)))
    assert ran == ["SD-Net, seed 0"]
    table = reproduce(make_grid(seeds=(0, 1)))
    assert ran[1:] == [
        "SD-Net, 4 encoders and decoders, seed 0", "SD-Net + scSE, seed 0", "SD-Net, seed 1",
        "SD-Net, 4 encoders and decoders, seed 1", "SD-Net + scSE, seed 1",
    ]  # fmt: skip
    assert {line.seeds for line in table} == {"2 (± 0.007)"}


def test_the_budget_counts_what_was_run_before(make_grid, finish_at_once, finish):
    ran = finish_at_once(dice)
    finish(make_grid().cells[0], dice(make_grid().cells[0]), minutes=40.0)
    reproduce(make_grid(), budget=1.0)
    assert ran == []
    reproduce(make_grid(), budget=2.0)
    assert len(ran) == 2


def test_a_cell_that_fails_stops_no_other_and_is_told_at_the_end(make_grid, finish_at_once, monkeypatch, capsys):
    finish_at_once(dice)
    run = Cell.run

    def fail_first(cell):
        if cell.row.name == "SD-Net":
            raise CellError("SD-Net, seed 0: `train` ended with exit code 2; see cell.log")
        run(cell)

    monkeypatch.setattr(Cell, "run", fail_first)
    grid = make_grid()
    with pytest.raises(CasesError, match="1 of 3 cells have no result") as caught:
        reproduce(grid)
    assert "`train` ended with exit code 2" in str(caught.value)
    text = (grid.settings.output_dir / "table.md").read_text(encoding="utf-8")
    assert text.count("| not run") == 1
    assert "SD-Net not run" in text


def test_the_table_names_data_settings_and_what_its_columns_mean(make_grid, finish_at_once, tmp_path):
    finish_at_once(dice)
    data = tmp_path / "malc"
    data.mkdir()
    (data / "dataset.json").write_text('{"name": "malc", "description": "a brain"}')
    grid = make_grid(dataset_dir=str(data), small=True, overrides=("batch_size=2",), section="test")
    reproduce(grid)
    text = (grid.settings.output_dir / "table.md").read_text(encoding="utf-8")
    for part in (
        "Table VII of scse",
        "The paper's data: MALC",
        "Ours: a brain, section test",
        "narrow",
        "batch_size=2",
    ):
        assert part in text
    assert {path.name for path in grid.settings.output_dir.glob("table.*")} == {"table.md", "table.csv", "table.tex"}


def test_without_data_nothing_is_run(make_grid):
    with pytest.raises(ConfigError, match="give --dataset_dir, or --parameters"):
        reproduce(make_grid(dataset_dir=None))


def test_the_command_prints_cells_or_a_table_of_parameters_without_data(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["reproduce", "scse", "VI", "--dataset_dir", "data", "--output_dir", out, "--print"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) == 7
    assert all(shlex.split(command).count("&&") == 1 for command in commands)
    assert main(["reproduce", "scse", "I", "--output_dir", out]) == 0
    assert "| SD-Net + scSE      | parameters | +3.3e4" in capsys.readouterr().out
    assert main(["reproduce", "focusnet", "2", "--parameters", "--output_dir", out]) == 0
    assert "18,933,497" in capsys.readouterr().out


def test_the_command_lists_the_tables(capsys):
    assert main(["reproduce"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 16
    assert main(["reproduce", "egcnn"]) == 0
    assert (
        capsys.readouterr().out
        == "egcnn 1: Brain tumours (BraTS 2019, 4 images)\negcnn 2: Kidneys and their tumours (KiTS 2019)\n"
    )


def test_the_command_says_what_it_cannot_use(tmp_path, capsys):
    assert main(["reproduce", "scse", "VIII"]) == 2
    assert main(["reproduce", "scse", "VII", "--output_dir", str(tmp_path)]) == 2
    assert "give --dataset_dir" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_grid_trains_evaluates_goes_on_and_prints_its_table(tmp_path, bundle_on_phantom, capsys):
    bundle = bundle_on_phantom("hippocampus_mri_scse_segmentation")
    arguments = [
        "reproduce", "scse", "VII", "--dataset_dir", str(bundle.data), "--bundle", str(bundle.root),
        "--output_dir", str(tmp_path / "out"), "--rows", "SD-Net", "--set", "network_def#features=4", "epochs=1",
        "slices_per_volume=2",
    ]  # fmt: skip
    assert main(arguments) == 0
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("| SD-Net  "))
    assert row.split("|")[4].strip()[:2] == "0."
    folder = tmp_path / "out" / "sd_net" / "seed_0"
    before = (folder / "evaluate_run.json").stat().st_mtime_ns
    assert main(arguments) == 0
    assert capsys.readouterr().out == text
    assert (folder / "evaluate_run.json").stat().st_mtime_ns == before
