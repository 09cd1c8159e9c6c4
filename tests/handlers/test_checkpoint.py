# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import io
import multiprocessing
import os
import time
from itertools import count
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import IgniteMetricHandler, from_engine
from monai.metrics import MAEMetric

from monai_attn.errors import DataError
from monai_attn.handlers import BestModelSaver, SafeCheckpointLoader
from monai_attn.handlers.checkpoint import AtomicSaver

OLD, NEW = {"weight": torch.zeros(3)}, {"weight": torch.ones(50_000)}


def load(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


class FullDisk(io.FileIO):
    """A file on a disk with room for some bytes more."""

    room = 0

    def write(self, data):
        if self.tell() + len(data) > self.room:
            super().write(bytes(data)[: self.room - self.tell()])
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("room", [0, 1, 700, 5000, 200_000])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, room):
    save = AtomicSaver(tmp_path)
    save(OLD, "model.pt")
    FullDisk.room = room
    monkeypatch.setattr(Path, "open", lambda path, mode: FullDisk(path, mode))
    with pytest.raises(DataError, match="No space left on device") as caught:
        save(NEW, "model.pt")
    assert caught.value.what == str(tmp_path / "model.pt")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert torch.equal(load(tmp_path / "model.pt")["weight"], OLD["weight"])
    save(NEW, "model.pt")
    assert torch.equal(load(tmp_path / "model.pt")["weight"], NEW["weight"])


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    save = AtomicSaver(tmp_path)
    save(OLD, "model.pt")

    def interrupted(checkpoint, file):
        file.write(b"PK half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(NEW, "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert torch.equal(load(tmp_path / "model.pt")["weight"], OLD["weight"])


def test_others_may_read_the_file(tmp_path):
    mask = os.umask(0o022)
    try:
        AtomicSaver(tmp_path)(OLD, "model.pt")
    finally:
        os.umask(mask)
    assert (tmp_path / "model.pt").stat().st_mode & 0o777 == 0o644


def test_a_folder_that_cannot_be_written_is_reported_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        AtomicSaver(tmp_path / "file" / "models").prepare()


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_attn.handlers.checkpoint.idist.get_rank", lambda: 1)
    save = AtomicSaver(tmp_path / "models")
    save.prepare()
    save(OLD, "model.pt")
    assert list(tmp_path.iterdir()) == []


def write_for_ever(folder: Path, first: Event) -> None:
    torch.set_num_threads(1)
    save = AtomicSaver(folder)
    for number in count():
        save({"weight": torch.full((500_000,), float(number))}, "model.pt")
        first.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as a copy of this one")
@pytest.mark.parametrize("attempt", range(10))
def test_a_process_killed_at_any_moment_leaves_a_whole_file(tmp_path, attempt):
    context = multiprocessing.get_context("fork")
    first = context.Event()
    writer = context.Process(target=write_for_ever, args=(tmp_path, first))
    writer.start()
    first.wait()
    time.sleep(0.007 * attempt)
    writer.kill()
    writer.join()
    weight = load(tmp_path / "model.pt")["weight"]
    assert (weight == weight[0]).all()
    AtomicSaver(tmp_path)(OLD, "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def evaluator_of(values: list[float], **options: Any) -> Engine:
    """An evaluator that measures one value after another, with a network that holds the number of the validation."""
    network = torch.nn.Linear(1, 1)
    remaining = iter(values)
    engine = Engine(lambda engine, batch: None)
    engine.state.metrics = {}
    engine.state.key_metric_name, engine.state.best_metric, engine.state.best_metric_epoch = "dice", -1, -1

    @engine.on(Events.EPOCH_COMPLETED)
    def measure():
        engine.state.metrics["dice"] = next(remaining)
        torch.nn.init.constant_(network.weight, len(values) - remaining.__length_hint__())

    BestModelSaver(network=network, **options).attach(engine)
    return engine


@pytest.mark.parametrize(
    ("values", "lower", "best"),
    [
        ([0.2, 0.5, 0.4], False, 2),
        ([0.2, 0.5, 0.4], True, 1),
        ([0.5, 0.5], False, 1),
        ([float("nan"), 0.1, float("nan"), 0.05], False, 2),
        ([float("nan"), 0.1, 0.05], True, 3),
    ],
)
def test_the_best_validation_is_kept_and_nan_is_worse_than_any_other(tmp_path, values, lower, best):
    engine = evaluator_of(values, save_dir=str(tmp_path), lower_is_better=lower)
    for _ in values:
        engine.run([0])
    assert load(tmp_path / "model.pt")["weight"].item() == best
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_the_best_model_is_there_while_a_better_one_is_written(tmp_path, monkeypatch):
    engine = evaluator_of([0.1, 0.2], save_dir=str(tmp_path))
    engine.run([0])
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(DataError):
        engine.run([0])
    assert load(tmp_path / "model.pt")["weight"].item() == 1


def test_the_best_value_is_remembered(tmp_path):
    engine = evaluator_of([0.5], save_dir=str(tmp_path))
    engine.run([0])
    state = engine.state.parts["best_model"].state_dict()
    worse = evaluator_of([0.4], save_dir=str(tmp_path))
    worse.state.parts["best_model"].load_state_dict(state)
    torch.save({}, tmp_path / "model.pt")
    worse.run([0])
    assert load(tmp_path / "model.pt") == {}


def test_monai_finds_a_best_metric_behind_one_that_is_nan(tmp_path):
    values = iter([torch.nan, 0.3])

    class Measure(IgniteMetricHandler):
        def compute(self):
            return next(values)

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1), "label": torch.zeros(1, 1)}],
        network=torch.nn.Identity(),
        key_val_metric={"dice": Measure(MAEMetric(), output_transform=from_engine(["pred", "label"]))},
        val_handlers=[BestModelSaver(str(tmp_path), torch.nn.Linear(1, 1))],
    )
    evaluator.run(1)
    evaluator.run(2)
    assert (evaluator.state.best_metric, evaluator.state.best_metric_epoch) == (0.3, 2)


def test_weights_are_loaded_when_the_engine_starts(tmp_path):
    torch.save({"weight": torch.ones(1, 1), "bias": torch.ones(1)}, tmp_path / "model.pt")
    network = torch.nn.Linear(1, 1)
    engine = Engine(lambda engine, batch: network.bias.item())
    SafeCheckpointLoader(str(tmp_path / "model.pt"), network).attach(engine)
    engine.run([0])
    assert engine.state.output == 1
