# SPDX-License-Identifier: Apache-2.0
import json
import logging
import platform
import sys
import warnings

import pytest
import torch
from monai.bundle import ConfigWorkflow, run, run_workflow
from monai.utils import OptionalImportError, instantiate

from monai_attn.errors import CasesError, ConfigError, DataError, Failure, root_cause
from monai_attn.run import Workflow, finish, start, summarize


@pytest.fixture(autouse=True)
def process_as_it_was():
    hook, handlers = sys.excepthook, list(logging.getLogger().handlers)
    with warnings.catch_warnings():
        yield
    finish()
    assert sys.excepthook is hook
    assert logging.getLogger().handlers == handlers


@pytest.fixture
def config(tmp_path):
    """A bundle whose engine counts to three."""
    entries = {
        "imports": ["$import torch", "$from monai_attn import run"],
        "output_dir": str(tmp_path / "out"),
        "resume": "",
        "step": "$lambda engine, batch: batch",
        "handler": {"_target_": "monai_attn.run.RunManifest", "name": "train", "output_dir": "@output_dir", "seed": 5},
        "engine": {"_target_": "ignite.engine.Engine", "process_function": "@step"},
        "initialize": [
            "$run.start('train', @output_dir, append=bool(@resume))",
            "$monai.utils.set_determinism(5)",
            "$@handler.attach(@engine)",
        ],
        "run": "$@engine.run([1, 2, 3])",
        "finalize": "$run.finish()",
    }
    path = tmp_path / "configs" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(entries))
    return str(path)


def ended(capsys, kind, call):
    """Make a call that fails, and end as its process would; returns exit code and screen."""
    with pytest.raises(kind) as caught:
        call()
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        sys.excepthook(caught.type, caught.value, caught.tb)
    return left.value.code, capsys.readouterr().err


@pytest.mark.fault(96)
def test_a_run_leaves_a_manifest_and_a_log_and_gives_the_process_back(config, tmp_path):
    hook = sys.excepthook
    start("train", str(tmp_path))  # whose place the run takes
    run(config_file=config)
    assert sys.excepthook is hook
    manifest = json.loads((tmp_path / "out" / "train_run.json").read_text())
    assert (manifest["state"], manifest["seed"], manifest["results"]) == ("finished", 5, {})
    assert manifest["versions"]["Pytorch"] == torch.__version__
    assert manifest["versions"]["python"] == platform.python_version()
    assert (tmp_path / "out" / "train.log").is_file()


def test_our_workflow_knows_its_kind_and_refuses_misspelt_overrides(config, tmp_path, capsys):
    other = tmp_path / "configs" / "inference.json"
    other.write_text("{}")
    assert [Workflow(file).workflow_type for file in (config, str(other))] == ["train", "infer"]
    code, screen = ended(capsys, ConfigError, lambda: run_workflow(Workflow, config_file=config, output_dri="x"))
    assert code == 2
    assert "did you mean --output_dir?" in screen
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (DataError("a.nii", "it is empty", "copy it again"), 2, "cannot use a.nii"),
        (ModuleNotFoundError("No module named 'onnxscript'"), 2, "cannot use onnxscript"),
        (OptionalImportError("Please install mlflow before using it."), 2, "cannot use mlflow"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 130, "stopped by the user; --resume auto continues it"),
    ],
)
def test_an_error_is_short_on_screen_and_whole_in_the_log(config, tmp_path, capsys, monkeypatch, error, code, shown):
    def step(engine, batch):
        raise error

    left, screen = ended(capsys, BaseException, lambda: run(config_file=config, step=step))
    assert left == code
    assert screen.startswith(f"monai-attn: {shown}")
    assert len(screen.splitlines()) <= 4
    log = (tmp_path / "out" / "train.log").read_text()
    assert "Traceback" in log
    assert type(error).__name__ in log
    assert json.loads((tmp_path / "out" / "train_run.json").read_text())["state"] in ("failed", "interrupted")
    monkeypatch.setenv("MONAI_ATTN_DEBUG", "1")
    assert "Traceback" in ended(capsys, BaseException, lambda: run(config_file=config, step=step))[1]


@pytest.mark.fault(96)
def test_an_error_of_the_program_that_goes_on_after_a_run_keeps_its_trace(config, capsys):
    seen = []
    sys.excepthook, hook = lambda *error: seen.append(error), sys.excepthook
    try:
        with pytest.raises(RuntimeError):
            run(config_file=config, **{"engine#step": 1})
        capsys.readouterr()
        error = ValueError("of the program")
        sys.excepthook(ValueError, error, None)
        assert seen == [(ValueError, error, None)]
        assert "monai_attn" not in capsys.readouterr().err
    finally:
        sys.excepthook = hook


def test_a_program_that_looks_at_a_bundle_keeps_its_folders_clean(config, tmp_path):
    workflow = ConfigWorkflow(config)
    workflow.initialize()
    logging.getLogger("test").warning("said before the run")
    assert not (tmp_path / "out").exists()
    workflow.run()
    assert "said before the run" in (tmp_path / "out" / "train.log").read_text()


def test_the_log_of_a_training_that_goes_on_is_kept(config, tmp_path):
    log = tmp_path / "out" / "train.log"
    for resume, kept in (("", False), ("auto", True), ("", False)):
        log.parent.mkdir(exist_ok=True)
        log.write_text("before\n")
        run(config_file=config, resume=resume)
        assert log.read_text().startswith("before\n") == kept


def test_other_processes_add_what_is_wrong_to_the_same_log(config, tmp_path, monkeypatch):
    log = tmp_path / "out" / "train.log"
    log.parent.mkdir()
    log.write_text("of the first process\n")
    workflow = ConfigWorkflow(config)
    monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
    workflow.initialize()
    workflow.run()
    logging.getLogger("test").info("also said by the first process")
    logging.getLogger("test").warning("a case of this process is odd")
    text = log.read_text()
    assert text.startswith("of the first process\n")
    assert "also said" not in text
    assert "a case of this process is odd" in text
    assert not (tmp_path / "out" / "train_run.json").exists()


FAILURES = [Failure("b.nii", "it is empty", "copy it again"), Failure("c.nii", "KeyError: 'x'", "see the log", False)]


@pytest.mark.parametrize(
    ("failures", "finished", "code"),
    [(FAILURES, 1, 3), (FAILURES[:1], 0, 2), (FAILURES[:1] * 3, 0, 2), (FAILURES, 0, 1)],
)
def test_cases_without_a_result_choose_the_exit_code(config, tmp_path, capsys, failures, finished, code):
    def segment(engine, batch):
        engine.state.failures = failures

    total = len(failures) + finished
    overrides = {"step": segment, "run": f"$@engine.run(list(range({total})))"}
    left, screen = ended(capsys, RuntimeError, lambda: run(config_file=config, **overrides))
    assert left == code
    expected = [f"{len(failures)} of {total} cases have no result"] if total > 1 else []
    expected += [line for failure in failures for line in str(failure).splitlines()]
    assert screen.removeprefix("monai-attn: ").splitlines()[:-1] == expected
    manifest = json.loads((tmp_path / "out" / "train_run.json").read_text())
    assert manifest["state"] == "incomplete"
    assert manifest["cases"]["segmented"] == finished
    assert [failure["what"] for failure in manifest["cases"]["failed"]] == [failure.what for failure in failures]


def test_of_many_failures_the_first_are_shown_and_all_counted():
    text = str(CasesError(FAILURES[:1] * 50, 7))
    assert text.startswith("50 of 57 cases have no result\n")
    assert text.count("cannot use") == CasesError.shown
    assert text.endswith("and 30 more, which the manifest names")


def test_a_full_disk_does_not_hide_the_error_that_ends_the_run(config, capsys, monkeypatch):
    def full(path):
        raise DataError(str(path), "it cannot be written: No space left", "make room")

    def step(engine, batch):
        monkeypatch.setattr("monai_attn.run.manifest.atomic_write", full)
        raise DataError("a_seg.nii.gz", "it cannot be written: No space left", "make room")

    code, screen = ended(capsys, RuntimeError, lambda: run(config_file=config, step=step))
    assert code == 2
    assert screen.startswith("monai-attn: cannot use a_seg.nii.gz")


def test_a_value_that_a_component_refuses_is_a_mistake_of_the_user():
    with pytest.raises(RuntimeError) as caught:
        instantiate(
            "monai.networks.nets.UNet",
            "default",
            **dict.fromkeys(("spatial_dims", "in_channels", "out_channels"), 2),
            channels=[1],
            strides=[],
        )
    message, code = summarize(caught.value)
    assert code == 2
    assert message.startswith("cannot use monai.networks.nets.UNet")
    assert "length of `channels` should be no less than 2" in message


def test_the_root_of_a_chain_is_summed_up_with_what_it_happened_in():
    error = RuntimeError("Failed to instantiate component 'Engine'\nmore")
    error.__cause__ = TypeError("unexpected keyword argument")
    assert root_cause(error) is error.__cause__
    message = "TypeError: unexpected keyword argument\n  in: Failed to instantiate component 'Engine'"
    assert summarize(error) == (message, 1)
