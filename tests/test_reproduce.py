# SPDX-License-Identifier: Apache-2.0
"""The papers' tables and the script that runs them."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import wilcoxon

SCRIPT = Path(__file__).parents[1] / "docs" / "reproduce" / "reproduce.py"
TABLES = {path.stem: json.loads(path.read_text())["tables"] for path in sorted(SCRIPT.parent.glob("*.json"))}


@pytest.fixture(scope="module")
def script():
    specification = importlib.util.spec_from_file_location("reproduce", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def reproduce(script, tmp_path, monkeypatch, capsys):
    """Runs scSE's Table VII with cells that are done at once, by a commit and an exit code that a test may change."""

    class Runs:
        ran, commit, code, last = [], "abc", 0, 0.704

        def run(self, command, stdout, **_):
            options = dict(zip(command[4::2], command[5::2]))
            folder = Path(options["--output_dir"])
            scores = np.linspace(0.5, 0.8, 8) + 0.01 * int(folder.name[-1])
            scores += 0.1 * (folder.parent.name == "sd_net_scse") * np.linspace(0.5, 1, 8)
            rows = [f"case_{i},{score},{score}\n" for i, score in enumerate(scores)]
            (folder / "val_mean_dice_raw.csv").write_text("filename,CSF,mean\n" + "".join(rows))
            curve = f"8,val_mean_dice,0.7\n10,val_mean_dice,{self.last}\n"
            (folder / "curves.csv").write_text("iteration,name,value\n" + curve)
            stdout.write("monai-attn: cannot use x\n" * bool(self.code))
            self.ran.append((folder.relative_to(tmp_path / "out").as_posix(), options))
            return subprocess.CompletedProcess(command, self.code)

        def __call__(self, *words, code=0):
            self.ran.clear()
            places = ["--dataset_dir", "malc", "--output_dir", str(tmp_path / "out")]
            assert script.main(["scse", "VII", *places, *words]) == code
            return capsys.readouterr()

        def table(self):
            return {row["method"]: row for row in csv.DictReader((tmp_path / "out" / "table.csv").open())}

    runs = Runs()
    monkeypatch.setattr(script.subprocess, "run", runs.run)
    monkeypatch.setattr(script, "code_commit", lambda: runs.commit)
    monkeypatch.setattr(script, "count_parameters", lambda _, overrides: 125 if overrides.get("se") else 100)
    return runs


def test_a_cell_is_a_training_and_an_evaluation_by_the_bundles_configurations(reproduce):
    reproduce("--rows", "SD-Net", "--seeds", "7", "--set", "batch_size=2", "validate#handlers#1=x", "--section", "test")
    (folder, train), (_, evaluate) = reproduce.ran
    assert folder == "sd_net/seed_7"
    assert "brain_mri_scse_segmentation/configs/train.json" in train["--config_file"]
    assert "evaluate.json" in evaluate["--config_file"]
    for options in (train, evaluate):
        assert [options[f"--{name}"] for name in ("se", "seed", "batch_size")] == ["$None", "7", "2"]
        assert options["--ckpt_dir"] == options["--output_dir"]
    assert "--validate#handlers#1" in train
    assert "--validate#handlers#1" not in evaluate  # where it would replace what loads the weights
    assert (train["--resume"], train.get("--val_section"), evaluate["--val_section"]) == ("auto", None, "test")


def test_what_is_done_is_not_run_again_and_seeds_are_added_one_after_the_other(reproduce):
    reproduce("--rows", "SD-Net")
    assert [folder for folder, _ in reproduce.ran] == ["sd_net/seed_0"] * 2
    assert "malc, section validation (on which the weights were chosen), " in reproduce("--seeds", "0", "1").out
    cells = ["sd_net_4_encoders_and_decoders/seed_0", "sd_net_scse/seed_0", "sd_net/seed_1"]
    assert [folder for folder, _ in reproduce.ran[::2]][:3] == cells


def test_cells_of_two_commits_or_settings_are_not_compared(reproduce):
    reproduce("--rows", "SD-Net")
    reproduce.commit = "def"
    with pytest.raises(SystemExit, match="a table comes from one commit"):
        reproduce()
    with pytest.raises(SystemExit, match="made with other settings"):
        reproduce("--set", "lr=0.1")
    assert reproduce.ran == []


def test_a_cell_that_fails_shows_the_end_of_its_log_stops_no_other_and_continues_later(reproduce):
    reproduce.code = 2
    assert "monai-attn: cannot use x" in reproduce("--rows", "SD-Net", "SD-Net + scSE", code=3).err
    assert [folder for folder, _ in reproduce.ran] == ["sd_net/seed_0", "sd_net_scse/seed_0"]
    assert reproduce.table()["SD-Net"]["ours"] == "not run"
    reproduce.code = 0
    reproduce("--rows", "SD-Net")
    assert len(reproduce.ran) == 2


def test_ours_is_over_the_seeds_and_the_difference_over_seeds_and_cases(reproduce):
    reproduce("--seeds", "0", "1")
    row, gain = reproduce.table()["SD-Net + scSE"], 0.1 * np.linspace(0.5, 1, 8)
    assert row["ours"] == f"{0.65 + 0.005 + gain.mean():.3f} ± {0.01 / np.sqrt(2):.3f}"
    assert [row[name] for name in ("paper", "seeds", "n")] == ["0.867 ± 0.082", "2", "8"]
    assert row["parameters"] == "125 (+25, 25.00 %)"
    assert row["difference"].startswith(f"{gain.mean():+.3f} [+0.06")
    assert row["p"] == f"{wilcoxon(gain).pvalue:.3f}"
    assert reproduce.table()["SD-Net, 4 encoders and decoders"]["p"] == "1.000"
    assert reproduce.table()["SD-Net"]["difference"] == ""


def test_a_training_that_still_improved_in_its_last_fifth_has_not_converged(reproduce):
    reproduce.last = 0.706
    reproduce("--rows", "SD-Net")
    assert reproduce.table()["SD-Net"]["ours"] == "0.650, not converged"


def test_a_figure_has_curves_a_dot_per_seed_and_the_difference(script, reproduce, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "reproduce", script)  # which is also the name of the folder
    monkeypatch.syspath_prepend(SCRIPT.parent)
    figures = importlib.import_module("figures")
    reproduce("--seeds", "0", "1", "--rows", "SD-Net", "SD-Net + scSE")
    options = SimpleNamespace(paper="scse", table="VII", seeds=[0, 1], output_dir=tmp_path / "out", dataset_dir=None)
    vars(options).update(small=False, section="", set=[], rows=None)
    paper = json.loads((SCRIPT.parent / "scse.json").read_text())
    curves, scores, differences = figures.comparison(script.Grid(paper, options)).axes
    assert len(curves.lines) == 4
    assert [text.get_text() for text in scores.get_yticklabels()] == ["SD-Net", "SD-Net + scSE"]
    assert scores.lines[0].get_xdata() == pytest.approx([0.65, 0.66])
    assert differences.lines[1].get_xdata() == pytest.approx([0.075])


def test_structures_can_be_pooled(script):
    scores = {"a": {"case": 0.2, "other": np.nan}, "b": {"case": 0.4, "other": 0.6}}
    assert script.pool(scores, ["a", "b"]) == pytest.approx({"case": 0.3, "other": 0.6})


def test_of_one_seed_there_is_no_p_and_cases_without_the_structure_do_not_count(script):
    found = script.statistics({0: {"a": 0.9, "b": np.nan, "c": 0.5}}, {0: {"a": 0.8, "b": 0.5, "c": 0.4}})
    assert found == {"ours": "0.700", "seeds": "1", "n": "2", "difference": "+0.100 [+0.100, +0.100]"}


def test_a_seed_is_a_fold_of_the_split_and_folds_are_paired_by_their_own_cases(script, tmp_path, monkeypatch):
    folds = json.loads((SCRIPT.parent / "splits" / "left_atrium.json").read_text())
    names = sorted(name for fold in folds for name in fold["test"])
    assert all(sorted(name for part in fold.values() for name in part) == names for fold in folds)
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": f"{name}.nii.gz"} for name in names]}))
    for name in names:
        (tmp_path / f"{name}.nii.gz").touch()
    ran, words = [], ["--dataset_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), "--seeds", "8"]
    monkeypatch.setattr(script.Cell, "run", lambda *cell_and_data: ran.append(cell_and_data[1]) is None)
    monkeypatch.setattr(script, "code_commit", lambda: "abc")
    script.main(["evidence", "autofocus", "--rows", "Basic", *words])
    assert ran == [str(tmp_path / "out" / "fold_3")]
    assert [script.case_name(case["image"]) for case in script.cases(ran[0], "test")] == folds[3]["test"]
    found = script.statistics({0: {"a": 0.9, "b": 0.8}, 1: {"c": 0.6}}, {0: {"a": 0.8, "b": 0.7}, 1: {"c": 0.5}})
    assert (found["seeds"], found["n"], found["difference"]) == ("2", "3", "+0.100 [+0.100, +0.100]")


def test_a_metric_without_scores_by_case_is_a_mean(script, tmp_path):
    (tmp_path / "metrics.csv").write_text("val_loss,0.2\nval_mean_dice_all,0.5\n")
    found = script.Cell(tmp_path, tmp_path, 0, {}, "test").scores("val_mean_dice_all")["mean"]
    assert script.statistics({0: found}, {0: found}) == {"ours": "0.500", "seeds": "1"}


def test_every_row_changes_entries_that_a_bundle_has_and_is_compared_with_a_row(script):
    assert [len(TABLES[paper]) for paper in ("autofocus", "egcnn", "focusnet", "scse")] == [4, 2, 2, 8]
    for table in [table for tables in TABLES.values() for table in tables.values()]:
        configs = script.config_files(script.ROOT / "bundles" / table["bundle"])
        entries = {key for path in configs for key in json.loads(Path(path).read_text())}
        rows = [row for row in table["rows"] if "overrides" in row]  # the others are the paper's alone
        names = [row["name"] for row in rows]
        assert {row.get("baseline", names[0]) for row in rows} <= set(names)
        for row in rows:
            common = {**table.get("overrides", {}), **table.get("small", {})}
            for key, value in {**common, **row["overrides"], **row.get("small", {})}.items():
                assert key.split("#")[0] in entries
                assert not str(value).startswith("@") or value[1:] in entries
        bundle = script.ROOT / "bundles" / table["bundle"]
        assert script.count_parameters(bundle, {**table.get("overrides", {}), **rows[-1]["overrides"]})


def test_networks_are_those_of_the_paper_unless_small(script):
    deeper = ("scse", "VII", "SD-Net, 4 encoders and decoders", 2_415_132)
    for paper, number, name, parameters in (deeper, ("focusnet", "2", "FocusNet", 18_933_497)):
        table = TABLES[paper][number]
        row = next(row for row in table["rows"] if row["name"] == name)
        bundle, small = script.ROOT / "bundles" / table["bundle"], {**table["small"], **row.get("small", {})}
        assert script.count_parameters(bundle, row["overrides"]) == parameters
        assert script.count_parameters(bundle, {**row["overrides"], **small}) < parameters / 5


def test_tables_are_listed_and_those_of_parameters_need_no_data(script, tmp_path, capsys):
    assert script.main(["egcnn", "III"]) == 2
    assert "egcnn 2: Kidneys and their tumors (KiTS 2019, " in capsys.readouterr().out
    assert script.main(["autofocus", "3", "--output_dir", str(tmp_path)]) == 0
    assert "| AFN-6     | parameters |       |      |       |   |            |   | 449,799 " in capsys.readouterr().out
    assert script.main(["focusnet", "2", "--output_dir", str(tmp_path)]) == 0
    assert "\nLIN,Jaccard,0.753,,,,,,,\n" in (tmp_path / "table.csv").read_text()  # not ours to run


def test_the_test_section_is_scored_if_its_cases_have_labels(script, tmp_path):
    (tmp_path / "a.png").touch()
    image, case = {"image": "a.png"}, {"image": "a.png", "label": "a.png"}
    for section, test in (("test", [case]), ("validation", [case, image]), ("validation", [])):
        (tmp_path / "dataset.json").write_text(json.dumps({"training": [case], "test": test}))
        assert script.scored_section(str(tmp_path)) == section


@pytest.mark.slow  # a training and an evaluation as processes of their own
def test_a_cell_is_trained_and_evaluated(script, tmp_path, monkeypatch, bundle_on_phantom, capsys):
    data = bundle_on_phantom("hippocampus_mri_scse_segmentation").data
    monkeypatch.setattr(script, "code_commit", lambda: "abc")
    small = ["structures=['anterior','posterior']", "slice_dim=0", "padded_size=[-1,64,48]", "network_def#features=4"]
    words = ["--dataset_dir", str(data), "--output_dir", str(tmp_path), "--rows", "SD-Net", "--set", *small]
    assert script.main(["scse", "VII", *words, "epochs=1", "slices_per_volume=2"]) == 0
    assert "| SD-Net                          | Dice    | 0.771 ± 0.150 | 0." in capsys.readouterr().out
