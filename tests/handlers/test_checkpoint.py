# SPDX-License-Identifier: Apache-2.0
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
from ignite.engine import Engine
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


def test_a_folder_that_cannot_be_written_is_reported_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        AtomicSaver(tmp_path / "file" / "models").prepare()


def test_only_the_first_process_writes_and_others_may_read_the_file(tmp_path, monkeypatch):
    mask = os.umask(0o022)
    try:
        AtomicSaver(tmp_path)(OLD, "model.pt")
    finally:
        os.umask(mask)
    assert (tmp_path / "model.pt").stat().st_mode & 0o777 == 0o644
    monkeypatch.setattr("monai_attn.handlers.checkpoint.idist.get_rank", lambda: 1)
    save = AtomicSaver(tmp_path / "models")
    save.prepare()
    save(OLD, "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def write_for_ever(folder: Path, first: Event) -> None:
    torch.set_num_threads(1)
    save = AtomicSaver(folder)
    for number in count():
        save({"weight": torch.full((500_000,), float(number))}, "model.pt")
        first.set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as a copy of this one")
@pytest.mark.parametrize("attempt", range(4))
def test_a_process_killed_at_any_moment_leaves_a_whole_file(tmp_path, attempt):
    context = multiprocessing.get_context("fork")
    first = context.Event()
    writer = context.Process(target=write_for_ever, args=(tmp_path, first))
    writer.start()
    first.wait()
    time.sleep(0.015 * attempt)
    writer.kill()
    writer.join()
    weight = load(tmp_path / "model.pt")["weight"]
    assert (weight == weight[0]).all()
    AtomicSaver(tmp_path)(OLD, "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def validate(folder: Path, values: list[float], **options: Any) -> SupervisedEvaluator:
    """Measure one value after another, with a network that holds the number of the validation."""
    network, remaining = torch.nn.Linear(1, 1), iter(values)

    class Measure(IgniteMetricHandler):
        def compute(self):
            torch.nn.init.constant_(network.weight, len(values) - remaining.__length_hint__() + 1)
            return next(remaining)

    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=[{"image": torch.zeros(1, 1), "label": torch.zeros(1, 1)}],
        network=torch.nn.Identity(),
        key_val_metric={"dice": Measure(MAEMetric(), output_transform=from_engine(["pred", "label"]))},
        val_handlers=[BestModelSaver(str(folder), network, **options)],
    )
    for epoch in range(1, len(values) + 1):
        evaluator.run(epoch)
    return evaluator


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "best"), [([0.2, 0.5, 0.4], 2), ([0.5, 0.5], 1), ([NAN, 0.1, NAN, 0.05], 2), ([NAN, NAN, 0.3], 3)]
)
def test_the_best_validation_is_kept_and_nan_is_worse_than_any_other(tmp_path, values, best):
    evaluator = validate(tmp_path, values)
    assert load(tmp_path / "model.pt")["weight"].item() == best
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (evaluator.state.best_metric, evaluator.state.best_metric_epoch) == (values[best - 1], best)
    validate(tmp_path, [0.2, 0.5, 0.1, NAN], metric="dice", lower_is_better=True)
    assert load(tmp_path / "model.pt")["weight"].item() == 3


def test_weights_are_loaded_when_the_engine_starts(tmp_path):
    torch.save({"weight": torch.ones(1, 1), "bias": torch.ones(1)}, tmp_path / "model.pt")
    network = torch.nn.Linear(1, 1)
    engine = Engine(lambda engine, batch: network.bias.item())
    SafeCheckpointLoader(str(tmp_path / "model.pt"), {"model": network}).attach(engine)
    engine.run([0])
    assert engine.state.output == 1
