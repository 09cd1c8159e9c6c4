# SPDX-License-Identifier: Apache-2.0
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from monai_attn import cli
from monai_attn.cli import main
from monai_attn.data.phantom import make_phantom
from monai_attn.errors import CasesError, Failure

from .conftest import Terminal

BUNDLE = "hippocampus_mri_scse_segmentation"


def test_phantom_writes_a_data_set_and_says_how_to_use_it(tmp_path, capsys):
    assert main(["phantom", BUNDLE, "--out", str(tmp_path / "p"), "--cases", "3", "--seed", "5"]) == 0
    assert f"-d {tmp_path / 'p'}" in capsys.readouterr().out
    listing = json.loads((tmp_path / "p" / "dataset.json").read_text())
    assert (len(listing["training"]), len(listing["validation"])) == (2, 1)


@pytest.mark.parametrize(
    ("bundle", "options", "message"),
    [
        ("no_such_bundle", [], "`monai-attn list` shows them all"),
        (BUNDLE, ["--cases", "1"], "give at least 2"),
        ("retinal_oct_scse_segmentation", ["--cases", "2"], "give at least 3"),
        (BUNDLE, ["--seed", "-1"], "cannot use seed=-1"),
        (BUNDLE, ["--out", "{tmp}/full"], "holds a data set already"),
        (BUNDLE, ["--out", "{tmp}/file/below"], "cannot be written"),
    ],
)
def test_what_cannot_be_used_is_one_message_and_code_2(tmp_path, capsys, bundle, options, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "dataset.json").write_text("{}")
    (tmp_path / "file").write_text("")
    options = [option.format(tmp=tmp_path) for option in options]
    assert main(["phantom", bundle, "--out", str(tmp_path / "new"), *options]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("monai-attn: cannot use ")
    assert message in output.err
    assert "Traceback" not in output.err
    assert output.out == ""
    assert not (tmp_path / "new").exists()


def test_check_shows_every_case_and_says_by_its_code_whether_all_can_be_used(tmp_path, capsys):
    folder = Path(__file__).parents[1] / "bundles" / BUNDLE
    data = make_phantom(BUNDLE, tmp_path / "p", cases=3)
    assert main(["check", str(folder), "--dataset_dir", str(data)]) == 0
    assert capsys.readouterr().out.endswith("3 cases: 3 can be used, 0 cannot; 0 with warnings\n")
    damaged = sorted((data / "labels").iterdir())[0]
    damaged.write_text("")
    assert main(["check", str(folder), "--dataset_dir", str(data), "--section", "training", "validation"]) == 2
    output = capsys.readouterr()
    assert f"    cannot use {damaged}\n      problem: the file is empty (0 bytes)\n" in output.out
    assert output.err.startswith(f"monai-attn: cannot use {data}\n  problem: 1 of 3 cases: {damaged.name}\n")
    assert main(["check", str(folder), str(data / "images"), "--nonfinite", "zero"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["trian"], "did you mean train?"),
        (["phantom", BUNDLE], "required: -o/--out"),
        (["phantom", BUNDLE, "-o", "a", "--cases", "few"], "invalid int value: 'few'"),
        (["phantom", BUNDLE, "-o", "a", "--case", "3"], "has no such option"),
        (["check"], "required: bundle"),
        (["segment", BUNDLE, "-o", "a"], "give an image"),
        (["segment", BUNDLE, "nowhere", "-o", "a"], "no such file or folder"),
        (["segment", BUNDLE, "", "-o", "a"], "is a variable not set?"),
        (["export", BUNDLE, "nowhere/model.onnx"], "there is no such folder"),
        (["train", BUNDLE, "-d", "nowhere", "-o", "a"], "no such file or folder"),
        (["train", BUNDLE, "-d", ".", "-o", "a", "--epoch", "3"], "did you mean --epochs?"),
        (["train", BUNDLE, "-d", ".", "-o", "a", "--config", "official"], "but baselines"),
        (["evaluate", "kits_ct", "-d", ".", "-o", "a"], "give those of your training: --checkpoint FILE"),
        (["copy", BUNDLE, "."], "it is there already"),
        (["info", "hipocampus_scse"], "did you mean hippocampus_mri_scse?"),
        (["info", "mri"], "it matches several bundles"),
        (["info", BUNDLE, "--verbose"], "has no such option"),
        (["list", "all"], "has no such option"),
        (["phantom", "brain", "-o", "a", "--cases", "1.5"], "invalid int value: '1.5'"),
        (["segment", BUNDLE, ".", "-o", "a", "--checkpoint", "nowhere.pt"], "there is no such file"),
        (["segment", "kits_ct", ".", "-o", "a"], "it comes without weights"),
        (["segment", BUNDLE, ".", "-o", "a", "--atention"], "no entry named 'atention'"),
        (
            ["segment", BUNDLE, ".", "-o", "a", "--network_def#aggregaton", "max"],
            "did you mean --network_def#aggregation?",
        ),
        (["segment", BUNDLE, ".", "-o", "a", "--crop_sizes", "3"], "no entry named 'crop_sizes'"),
        (["segment", BUNDLE, ".", "-o", "a", "--overwrite", "perhaps"], "expected True or False"),
        (["segment", BUNDLE, ".", "-o", "a", "--num_workers", "two"], "expected a number"),
        (["segment", BUNDLE, ".", "-o", "a", "--config", "none_such"], "has no such configuration"),
        (["train", BUNDLE, "-d", ".", "-o", "a", "--lr", "[1,2]"], "expected a number"),
        (["train", BUNDLE, "-d", ".", "-o", "a", "--epochs", "2.5"], "expected a whole number"),
        (["train", BUNDLE, "-d", ".", "-o", "a", "--structures", "7"], "expected a list"),
        (["train", BUNDLE, "-d", ".", "-o", "a", "--train#trainer#max_epoch", "1"], "max_epochs"),
        (["train", BUNDLE, "-d", "."], "required: -o/--out"),
        (["train", BUNDLE, "-o", "a"], "required: -d/--dataset_dir"),
        (["train", "-d", ".", "-o", "a"], "required: bundle"),
        (["evaluate", BUNDLE, "-d", ".", "-o", "a", "--checkpoint", "a#b.pt"], "there is no such file"),
        (["export", BUNDLE], "required: file"),
        (["prepare", BUNDLE, ".", "-o", "a", "--split", "test=nowhere.txt"], "it cannot be read"),
    ],
)
def test_a_mistake_is_answered_in_four_lines_before_anything_heavy(arguments, message, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "monai_attn", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    error = "".join(line for line in done.stderr.splitlines(True) if not line.startswith("import time:"))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in error
    assert len(error.splitlines()) <= 4
    assert " torch" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command", [[], ["check"], ["phantom"], ["prepare"], ["segment"], ["train"], ["evaluate"], ["export"], ["copy"]]
)
def test_help_has_examples_that_parse_and_the_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes:\n  0  success\n" in text
    examples = re.findall(r"^  monai-attn (.*)$", text, flags=re.MULTILINE)
    assert examples
    for example in examples:
        assert example.split()[0] in (command or ["segment", "train"])
        assert cli._parser().parse_known_args(example.split())[0].command == example.split()[0]


@pytest.mark.parametrize("terminal", [True, False])
def test_long_commands_have_a_progress_bar_on_a_terminal_only(tmp_path, monkeypatch, terminal):
    folder = str(Path(__file__).parents[1] / "bundles" / BUNDLE)
    data = tmp_path / "p"
    commands = {
        "phantom": ["phantom", BUNDLE, "--out", str(data), "--cases", "2"],
        "check": ["check", folder, "--dataset_dir", str(data)],
    }
    for name, arguments in commands.items():
        stderr = Terminal() if terminal else io.StringIO()
        monkeypatch.setattr(sys, "stderr", stderr)
        assert main(arguments) == 0, stderr.getvalue()
        assert (f"{name}: " in stderr.getvalue()) == terminal
        assert terminal or stderr.getvalue() == ""


def test_a_command_is_shown_as_monai_takes_it_with_images_in_any_place_and_of_any_name(tmp_path, capsys):
    for name in ("scan[1].nii.gz", "scan1.nii.gz"):
        (tmp_path / name).touch()
    image = str(tmp_path / "scan[1].nii.gz")
    assert main(["segment", "hippocampus_mri_scse", "-o", "out", image, "--se", "none", "--show"]) == 0
    shown = shlex.split(capsys.readouterr().out)
    assert shown[shown.index("--input") + 1] == image
    assert shown[shown.index("--se") + 1] == "$None"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--help"], "phantom"),
        (["phantom", "--help"], "--cases N"),
        (["check", "--help"], "--section"),
        (["list"], "Hatamizadeh EG-CNN"),
        (["info", "kits_ct"], "--overlap (0.5)"),
        (["info", "kits_ct"], "see docs/own_data.md"),
        (["prepare", "--help"], "KiTS 2019"),
    ],
)
def test_help_and_lists_import_nothing_heavy(arguments, shown):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['monai-attn', *{arguments!r}]\n"
        "try:\n    runpy.run_module('monai_attn', run_name='__main__')\n"
        "finally:\n    assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


def test_stopping_a_command_shows_no_trace(tmp_path, capsys, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("monai_attn.data.phantom.make_phantom", stop)
    assert main(["phantom", BUNDLE, "--out", str(tmp_path / "p")]) == 130
    monkeypatch.delitem(sys.modules, "monai_attn.run.session")  # as while it is imported
    assert main(["phantom", BUNDLE, "--out", str(tmp_path / "p")]) == 130
    assert "monai_attn.run.session" not in sys.modules
    assert capsys.readouterr().err == "monai-attn: stopped by the user\n" * 2


def test_the_table_is_written_also_if_a_case_has_no_result(tmp_path, monkeypatch):
    def run(*_, **__):
        error = CasesError([Failure("a.nii", "it is empty", "copy it again")], finished=1)
        raise RuntimeError("Failed to evaluate 'run'") from error  # as MONAI does

    written = []
    monkeypatch.setattr("monai_attn.run.workflow.Workflow", run)
    monkeypatch.setattr("monai_attn.run.report.write_table", lambda *places: written.append(places))
    assert main(["segment", BUNDLE, str(tmp_path), "-o", "out", "--table", "volumes.csv"]) == 3
    assert written == [("out", "volumes.csv")]
