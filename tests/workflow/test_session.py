# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import logging
import sys
import warnings

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, run

from monai_attn.errors import CasesError, ConfigError, DataError, Failure
from monai_attn.workflow import Session, session
from monai_attn.workflow.call import BundleCall


@pytest.fixture(autouse=True)
def keep_process_state():
    hook, handlers = sys.excepthook, list(logging.getLogger().handlers)
    with warnings.catch_warnings():
        yield
    sys.excepthook = hook
    logging.getLogger().handlers = handlers


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose engine notes that it ran."""
    config = {
        "imports": ["$import torch"],
        "output_dir": str(tmp_path / "out"),
        "epochs": 3,
        "lr": 0.1,
        "engine": {"_target_": "ignite.engine.Engine", "process_function": "$lambda engine, batch: batch"},
        "session": {"_target_": "monai_attn.workflow.Session", "output_dir": "@output_dir", "seed": 5},
        "initialize": "$@session.start()",
        "run": "$@session.run(@engine) if False else @session.manifest.update(ran=@epochs)",
    }
    path = tmp_path / "configs" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(config))
    return path


@pytest.fixture
def called(monkeypatch, tmp_path):
    """As if by ``monai.bundle.run`` with a configuration file named run.json."""
    (tmp_path / "run.json").write_text("{}")
    monkeypatch.setattr(session, "bundle_call", lambda: BundleCall([str(tmp_path / "run.json")], {}))


def cause(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else cause(error.__cause__)


@pytest.mark.usefixtures("called")
def test_a_session_seeds_and_documents_the_run(tmp_path):
    session = Session(str(tmp_path), seed=7)
    session.start()
    drawn = torch.rand(1)
    session.start()
    assert torch.equal(drawn, torch.rand(1))
    manifest = json.loads((tmp_path / "run_run.json").read_text())
    assert manifest["state"] == "running"
    assert manifest["seed"] == 7
    assert manifest["versions"]["torch"] == torch.__version__


def test_a_finished_run_leaves_its_results(tmp_path):
    session = Session(str(tmp_path))
    session.start()
    engine = Engine(lambda engine, batch: batch)
    engine.add_event_handler(Events.COMPLETED, lambda: engine.state.metrics.update(dice=0.5))
    original = engine.run
    engine.run = lambda: original([1])
    session.run(engine)
    manifest = json.loads((tmp_path / "run_run.json").read_text())
    assert (manifest["state"], manifest["results"]) == ("finished", {"dice": 0.5})


def test_the_manifest_is_named_after_the_last_configuration_and_holds_the_overrides(bundle, tmp_path):
    run(config_file=str(bundle), epochs=4)
    manifest = json.loads((tmp_path / "out" / "train_run.json").read_text())
    assert manifest["overrides"] == {"epochs": "4"}
    assert manifest["config_files"] == [str(bundle)]
    assert (tmp_path / "out" / "train.log").is_file()


@pytest.mark.parametrize(("override", "nearest"), [({"epoch": 7}, "--epochs"), ({"output_dri": "x"}, "--output_dir")])
def test_unknown_overrides_are_refused_with_the_nearest_name(bundle, override, nearest):
    with pytest.raises(RuntimeError) as caught:
        run(config_file=str(bundle), **override)
    error = cause(caught.value)
    assert isinstance(error, ConfigError)
    assert nearest in error.fix


def test_overrides_of_an_arguments_file_are_checked_too(bundle, tmp_path):
    arguments = tmp_path / "args.json"
    arguments.write_text(json.dumps({"config_file": str(bundle), "epoch": 7}))
    with pytest.raises(RuntimeError) as caught:
        run(args_file=str(arguments))
    assert isinstance(cause(caught.value), ConfigError)


def test_nested_overrides_and_keys_of_an_overlay_are_accepted(bundle, tmp_path):
    overlay = bundle.parent / "extra.json"
    overlay.write_text(json.dumps({"note": 1, "session#seed": 9}))
    run(config_file=[str(bundle), str(overlay)], note=2, **{"session#seed": 11})
    assert json.loads((tmp_path / "out" / "extra_run.json").read_text())["seed"] == 11


@pytest.mark.usefixtures("called")
def test_a_missing_file_is_reported_before_anything_is_written(tmp_path):
    with pytest.raises(DataError, match=r"model\.pt"):
        Session(str(tmp_path / "out"), needs=str(tmp_path / "model.pt")).start()
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("called")
def test_an_output_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        Session(str(tmp_path / "file" / "out")).start()


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (DataError("a.nii", "it is empty", "copy it again"), 2, "cannot use a.nii"),
        (ZeroDivisionError("division by zero"), 1, "ZeroDivisionError: division by zero"),
        (KeyboardInterrupt(), 130, "stopped by the user"),
    ],
)
@pytest.mark.usefixtures("called")
def test_uncaught_errors_are_short_and_choose_the_exit_code(tmp_path, capsys, error, code, shown):
    session = Session(str(tmp_path))
    session.start()
    wrapped: BaseException = error
    if isinstance(error, Exception):
        wrapped = RuntimeError("a long chain")
        wrapped.__cause__ = error
    with pytest.raises(SystemExit) as left:
        sys.excepthook(type(wrapped), wrapped, None)
    assert left.value.code == code
    screen = capsys.readouterr().err
    assert screen.startswith(f"monai_attn: {shown}")
    assert len(screen.splitlines()) <= 4
    assert type(error).__name__ in (tmp_path / "run.log").read_text()
    assert json.loads((tmp_path / "run_run.json").read_text())["state"] in ("failed", "interrupted")


@pytest.mark.parametrize(
    ("overrides", "shown"),
    [
        ({"engine#_target_": "ignite.engine.Enginee"}, "Cannot locate class or function path: 'ignite.engine.Enginee'"),
        ({"engine#step": 1}, "unexpected keyword argument 'step'\n  in the configuration: ignite.engine.Engine\n"),
        ({"engine#process_function": "@egnine"}, "By 'egnine', did you mean 'engine'?"),
        ({"engine#process_function": "$1 / 0"}, "division by zero\n  in the configuration: $1 / 0\n"),
        ({"run_id": "rnu"}, "run ID 'rnu' doesn't exist"),
        ({"device": "cuda:93"}, "cannot use --device cuda:93"),
    ],
)
def test_a_wrong_entry_of_the_configuration_takes_four_lines_at_most(bundle, tmp_path, capsys, overrides, shown):
    config = json.loads(bundle.read_text())
    bundle.write_text(json.dumps({**config, "device": "cpu", "run": "$@session.run(@engine)"}))
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI raises several kinds
        run(config_file=str(bundle), **overrides)
    capsys.readouterr()
    with pytest.raises(SystemExit):
        sys.excepthook(type(caught.value), caught.value, caught.value.__traceback__)
    screen = capsys.readouterr().err
    assert shown in screen
    assert len(screen.splitlines()) <= 4


def test_an_error_of_the_run_itself_names_no_entry(bundle, capsys):
    config = json.loads(bundle.read_text())
    bundle.write_text(json.dumps({**config, "run": "$@session.run(@engine)"}))  # the engine has no data
    with pytest.raises(RuntimeError) as caught:
        run(config_file=str(bundle))
    with pytest.raises(SystemExit):
        sys.excepthook(type(caught.value), caught.value, caught.value.__traceback__)
    assert "in the configuration" not in capsys.readouterr().err


def test_the_log_of_a_training_that_goes_on_is_kept(bundle, tmp_path):
    config = json.loads(bundle.read_text())
    bundle.write_text(json.dumps({**config, "resume": ""}))
    log = tmp_path / "out" / "train.log"
    for resume, kept in (("", False), ("auto", True), ("", False)):
        log.parent.mkdir(exist_ok=True)
        log.write_text("before\n")
        run(config_file=str(bundle), resume=resume)
        assert log.read_text().startswith("before\n") == kept


def test_other_processes_add_what_is_wrong_to_the_same_log(bundle, tmp_path, monkeypatch):
    log = tmp_path / "out" / "train.log"
    log.parent.mkdir()
    log.write_text("of the first process\n")
    monkeypatch.setattr(session.idist, "get_rank", lambda: 1)
    run(config_file=str(bundle))
    logging.getLogger("test").info("also said by the first process")
    logging.getLogger("test").warning("a case of this process is odd")
    text = log.read_text()
    assert text.startswith("of the first process\n")
    assert "also said" not in text
    assert "a case of this process is odd" in text
    assert not (tmp_path / "out" / "train_run.json").exists()


def test_a_run_has_one_name_for_one_process_and_for_many():
    assert BundleCall(["a/train.json", "a/multi_gpu_train.json"], {}).name == "train"
    assert BundleCall(["a/inference.json", "a/other.json"], {}).name == "other"


def test_who_stops_a_training_is_told_how_it_goes_on(bundle, tmp_path, capsys):
    def stop():
        raise KeyboardInterrupt

    session = Session(str(tmp_path))
    session._call = BundleCall([str(bundle)], {}, ConfigParser({"resume": ""}))
    engine = Engine(lambda engine, batch: None)
    engine.run = stop
    with pytest.raises(KeyboardInterrupt) as caught:
        session.run(engine, engine)
    with pytest.raises(SystemExit) as left:
        session._report(KeyboardInterrupt, caught.value, None)
    assert left.value.code == 130
    assert "stopped by the user; --resume auto goes on" in capsys.readouterr().err


@pytest.mark.usefixtures("called")
def test_weights_that_cannot_be_used_are_reported_before_anything_is_written(tmp_path):
    (tmp_path / "model.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError, match="git lfs pull"):
        Session(str(tmp_path / "out"), needs=str(tmp_path / "model.pt")).start()
    assert not (tmp_path / "out").exists()


FAILURES = [Failure("b.nii", "it is empty", "copy it again"), Failure("c.nii", "KeyError: 'x'", "see the log", False)]


@pytest.mark.parametrize(
    ("failures", "finished", "code"),
    [
        (FAILURES[:1], 2, 3),
        (FAILURES, 1, 3),
        (FAILURES[:1], 0, 2),
        (FAILURES[:1] * 3, 0, 2),
        (FAILURES, 0, 1),
    ],
)
@pytest.mark.usefixtures("called")
def test_cases_without_a_result_are_listed_at_the_end_and_choose_the_exit_code(
    tmp_path, capsys, failures, finished, code
):
    def segment(engine, batch):
        engine.state.failures = failures

    session = Session(str(tmp_path))
    session.start()
    engine = Engine(segment)
    original = engine.run
    engine.run = lambda: original(range(len(failures) + finished))
    with pytest.raises(CasesError) as caught:
        session.run(engine)
    with pytest.raises(SystemExit) as left:
        sys.excepthook(CasesError, caught.value, None)
    assert left.value.code == code
    screen = capsys.readouterr().err.splitlines()
    total = len(failures) + finished
    if total > 1:
        assert screen.pop(0) == f"monai_attn: {len(failures)} of {total} cases have no result"
    else:
        screen[0] = screen[0].removeprefix("monai_attn: ")
    blocks = [line for failure in failures for line in str(failure).splitlines()]
    assert screen == [*blocks, f"  full trace: {tmp_path / 'run.log'}"]
    manifest = json.loads((tmp_path / "run_run.json").read_text())
    assert manifest["state"] == "incomplete"
    assert manifest["cases"]["segmented"] == finished
    assert [failure["what"] for failure in manifest["cases"]["failed"]] == [failure.what for failure in failures]


def test_of_many_failures_the_first_are_shown_and_all_counted():
    text = str(CasesError(FAILURES[:1] * 50, 7))
    assert text.startswith("50 of 57 cases have no result\n")
    assert text.count("cannot use") == CasesError.shown
    assert text.endswith("and 30 more, which the manifest names")


@pytest.mark.usefixtures("called")
def test_a_full_disk_does_not_hide_the_error_that_ends_the_run(tmp_path, capsys, monkeypatch):
    def full(path):
        raise DataError(str(path), "it cannot be written: No space left", "make room")

    session_ = Session(str(tmp_path))
    session_.start()
    monkeypatch.setattr(session, "atomic_write", full)
    error = DataError("a_seg.nii.gz", "it cannot be written: No space left", "make room")
    with pytest.raises(SystemExit):
        sys.excepthook(DataError, error, None)
    assert capsys.readouterr().err.startswith("monai_attn: cannot use a_seg.nii.gz")


@pytest.mark.usefixtures("called")
def test_the_manifest_has_hashes_of_the_weights_and_of_the_configuration(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "model.pt")
    Session(str(tmp_path), needs=str(tmp_path / "model.pt")).start()
    manifest = json.loads((tmp_path / "run_run.json").read_text())
    assert manifest["needs"] == {
        str(tmp_path / "model.pt"): hashlib.sha256((tmp_path / "model.pt").read_bytes()).hexdigest()
    }
    assert len(manifest["configuration"]) == 64


def test_the_hash_of_the_configuration_is_that_of_what_results_depend_on(bundle):
    def made(**overrides):
        return BundleCall([str(bundle)], overrides).configuration_hash()

    assert made() == made() == made(output_dir="elsewhere")
    assert made(lr=0.2) != made()
    assert made(**{"session#seed": 9}) != made()
    assert BundleCall([], {}).configuration_hash() != made()


def test_a_program_that_loads_a_bundle_keeps_its_error_handling_and_its_folders_clean(tmp_path):
    hook = sys.excepthook
    Session(str(tmp_path / "out"), needs="none.pt").start()
    assert sys.excepthook is hook
    assert not (tmp_path / "out").exists()
