# SPDX-License-Identifier: Apache-2.0
import csv
import json
import logging
from pathlib import Path
from typing import NamedTuple
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, Dataset
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, MeanAbsoluteError, ValidationHandler, from_engine
from monai.transforms import Compose, EnsureTyped, RandFlipd, RandGaussianNoised, RandZoomd
from torch.optim import lr_scheduler as schedules

from monai_attn.errors import ConfigError, DataError
from monai_attn.handlers import (
    BestModelSaver,
    CurveSaver,
    EarlyStop,
    EpochSeed,
    LossTerms,
    TrainingCheckpoint,
    ValidationLoss,
    resume,
    validation_loss,
)
from monai_attn.visualize import figures

from ..conftest import refused

CASES = [{"image": torch.full((1, 8, 8), float(i)), "label": torch.full((1, 8, 8), i % 3 / 2)} for i in range(10)]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(figures, "training_curves", lambda *_: None)
    monkeypatch.setattr(figures, "save", lambda *_: None)


class NoisyLoss(torch.nn.Module):
    """A loss that draws random numbers, as the one with Gumbel noise does."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.terms = {}

    def forward(self, input, target):
        error = (input + self.noise * torch.rand_like(input) - target).square().mean()
        self.terms = {"error": error.detach()}
        return error


class BreakdownError(Exception):
    pass


class Training(NamedTuple):
    trainer: SupervisedTrainer
    evaluator: SupervisedEvaluator
    network: torch.nn.Module
    folder: Path

    def run(self, stop_in_epoch: int = 0) -> None:
        """Run, and break down in the second iteration of an epoch."""
        if stop_in_epoch:
            iteration = (stop_in_epoch - 1) * self.trainer.state.epoch_length + 2
            self.trainer.add_event_handler(Events.ITERATION_COMPLETED(once=iteration), self._break)
            with pytest.raises(BreakdownError):
                self.trainer.run()
        else:
            self.trainer.run()

    @staticmethod
    def _break(engine):
        raise BreakdownError

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return torch.load(self.folder / name, weights_only=True)

    def curves(self) -> list[list[str]]:
        with open(self.folder / "curves.csv") as file:
            return list(csv.reader(file))


def training(
    folder: Path,
    *,
    workers: int = 0,
    schedule: str = "cosine",
    optimizer: str = "adam",
    epochs: int = 5,
    lr: float = 0.05,
    batch_size: int = 4,
    width: int = 4,
    seed: int = 3,
    patience: int = 10,
    resume: str | bool = "",
    interval: int = 1,
    noise: float = 0.1,
    zoom: float = 0.7,
    dropout: float = 0.3,
) -> Training:
    torch.manual_seed(1)
    np.random.seed(1)
    # batch norm has running statistics, dropout and the loss draw from PyTorch's generator
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, width, 3, padding=1),
        torch.nn.BatchNorm2d(width),
        torch.nn.Dropout(dropout),
        torch.nn.Conv2d(width, 1, 1),
    )
    keys = ["image", "label"]
    steps = [EnsureTyped(keys), RandFlipd(keys, prob=0.5, spatial_axis=0), RandZoomd(keys, prob=zoom)]
    cached = CacheDataset(CASES, Compose([*steps, RandGaussianNoised("image", prob=0.5)]), progress=False)
    loader = DataLoader(cached, batch_size=batch_size, shuffle=True, num_workers=workers)
    optimizers = {"adam": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
    optim = optimizers[optimizer](network.parameters(), lr=lr)
    scheduler = {
        "cosine": lambda: schedules.CosineAnnealingLR(optim, epochs),
        "iterations": lambda: schedules.PolynomialLR(optim, epochs * len(loader), power=0.9),
        "numpy": lambda: schedules.LambdaLR(optim, lambda epoch: np.cos(np.pi * epoch / epochs / 2)),
        "steps": lambda: schedules.MultiStepLR(optim, [2, 4], gamma=0.3),
        "plateau": lambda: schedules.ReduceLROnPlateau(optim, factor=0.5, patience=0, threshold=0.5),
    }[schedule]()
    loss = NoisyLoss(noise)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(CASES[:4], EnsureTyped(["image", "label"])), batch_size=2),
        network=network,
        key_val_metric={"error": MeanAbsoluteError(output_transform=from_engine(["pred", "label"]))},
        metric_cmp_fn=lambda new, best: new < best,
        val_handlers=[ValidationLoss(torch.nn.MSELoss())],
    )
    step = LrScheduleHandler(
        scheduler,
        print_lr=False,
        epoch_level=schedule != "iterations",
        step_transform=validation_loss if schedule == "plateau" else lambda engine: (),
    )
    about = {"seed": seed}
    best = BestModelSaver(str(folder), network, metric="val_loss", lower_is_better=True, description=about)
    for handler in [step, best] if schedule == "plateau" else [best]:
        handler.attach(evaluator)
    parts = {"model": network, "optimizer": optim, "lr_scheduler": scheduler}
    checkpoint = TrainingCheckpoint(str(folder), parts, evaluator, resume=resume, interval=interval)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=loader,
        network=network,
        optimizer=optim,
        loss_function=loss,
        train_handlers=[
            checkpoint,  # first in the list, to show that its place does not matter
            EpochSeed(seed),
            *([] if schedule == "plateau" else [step]),
            ValidationHandler(1, evaluator),
            EarlyStop(evaluator, "val_loss", patience=patience),
            LossTerms(loss),
            CurveSaver(str(folder), evaluator),
        ],
    )
    return Training(trainer, evaluator, network, folder)


def assert_equal(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(weights, others, rtol=0, atol=0)


def assert_same(first: Training, second: Training) -> None:
    for name in ("model.pt", "model_final.pt"):
        assert_equal(first.weights(name), second.weights(name))
    assert first.evaluator.state.best_metric == second.evaluator.state.best_metric
    assert first.evaluator.state.best_metric_epoch == second.evaluator.state.best_metric_epoch
    assert first.curves() == second.curves()


@pytest.mark.parametrize(("workers", "stop"), [(0, 1), (2, 2)])
def test_a_resumed_training_ends_bitwise_as_one_that_ran_through(tmp_path, workers, stop):
    through = training(tmp_path / "through", workers=workers, epochs=3)
    through.run()
    training(tmp_path / "stopped", workers=workers, epochs=3).run(stop_in_epoch=stop)
    resumed = training(tmp_path / "stopped", workers=workers, epochs=3, resume="auto")
    torch.rand(7)  # whatever was drawn before
    np.random.rand(7)
    resumed.run()
    assert_same(through, resumed)


@pytest.mark.parametrize("schedule", ["iterations", "plateau", "numpy"])
def test_every_kind_of_schedule_goes_on(tmp_path, schedule):
    options = {"schedule": schedule, "optimizer": "rmsprop", "epochs": 4}
    through = training(tmp_path / "through", **options)
    through.run()
    training(tmp_path / "stopped", **options).run(stop_in_epoch=3)
    resumed = training(tmp_path / "stopped", **options, resume="auto")
    resumed.run()
    assert_same(through, resumed)
    assert resumed.trainer.optimizer.param_groups[0]["lr"] == through.trainer.optimizer.param_groups[0]["lr"]


def test_early_stopping_counts_on(tmp_path):
    through = training(tmp_path / "through", lr=1.0, epochs=30, patience=3)
    through.run()
    last = through.trainer.state.epoch
    assert 4 < last < 30
    training(tmp_path / "stopped", lr=1.0, epochs=30, patience=3).run(stop_in_epoch=last - 1)
    resumed = training(tmp_path / "stopped", lr=1.0, epochs=30, patience=3, resume="auto")
    resumed.run()
    assert resumed.trainer.state.epoch == last
    assert_same(through, resumed)


def test_a_training_that_stopped_early_has_ended(tmp_path):
    ended = training(tmp_path, lr=1.0, epochs=30, patience=3)
    ended.run()
    weights = ended.weights("model_final.pt")
    (tmp_path / "model_final.pt").unlink()  # as if it had been killed between the two files
    resumed = training(tmp_path, lr=1.0, epochs=30, patience=3, resume="auto")
    resumed.run()
    assert resumed.trainer.state.epoch == ended.trainer.state.epoch
    assert_equal(resumed.weights("model_final.pt"), weights)


def test_resuming_a_training_that_ended_changes_nothing(tmp_path):
    ended = training(tmp_path, epochs=2)
    ended.run()
    weights = {name: ended.weights(name) for name in ("model.pt", "model_final.pt")}
    again = training(tmp_path, epochs=2, resume="auto")
    again.run()
    for name, before in weights.items():
        assert_equal(ended.weights(name), before)
    assert again.evaluator.state.metrics == ended.evaluator.state.metrics  # the results of the manifest
    assert set(again.evaluator.state.metrics) == {"error", "val_loss"}


def test_auto_starts_anew_where_there_is_no_checkpoint_and_a_path_does_not(tmp_path):
    fresh, automatic = training(tmp_path / "a", epochs=1), training(tmp_path / "b", epochs=1, resume="auto")
    fresh.run()
    automatic.run()
    assert_same(fresh, automatic)
    with pytest.raises(DataError, match="there is no such file"):
        training(tmp_path / "c", resume=str(tmp_path / "no.pt")).run()
    with pytest.raises(DataError, match="it holds no state of a training"):
        training(tmp_path / "c", resume=str(tmp_path / "a" / "model.pt")).run()
    with pytest.raises(ConfigError, match="expected 1 or more epochs, got 0"):
        training(tmp_path, interval=0)


def test_the_checkpoint_is_plain_tensors_and_written_every_few_epochs_and_at_the_end(tmp_path):
    run = training(tmp_path, epochs=5, interval=2)
    latest, written = tmp_path / "checkpoint_latest.pt", []

    def look():
        written.append(run.weights(latest.name)["trainer"]["epoch"] if latest.exists() else 0)

    run.trainer.add_event_handler(Events.EPOCH_STARTED, look)
    run.run()
    assert written == [0, 0, 2, 2, 4]
    last = run.weights("checkpoint_latest.pt")
    assert set(last) == {"model", "optimizer", "lr_scheduler", "trainer", "curves", "early_stop", "best_model"}
    assert (last["trainer"]["epoch"], last["trainer"]["finished"]) == (5, True)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"epochs": 9}, "epochs 5, now 9"),
        ({"batch_size": 5}, "iterations of an epoch 3, now 2; batch_size 4, now 5"),
        ({"lr": 0.1}, "optimizer.param_groups.0.lr 0.05, now 0.1"),
        ({"optimizer": "rmsprop"}, "optimizer AdamW, now RMSprop"),
        ({"schedule": "steps"}, "lr_scheduler CosineAnnealingLR, now MultiStepLR"),
        ({"seed": 4}, "seed 3, now 4"),
        pytest.param({"workers": 2}, "num_workers 0, now 2", marks=pytest.mark.fault(93)),
        ({"dropout": 0.4}, "network.2.p 0.3, now 0.4"),
        ({"noise": 0.2}, "loss.noise 0.1, now 0.2"),
        ({"zoom": 0.5}, "transform.transforms.2.prob 0.7, now 0.5"),
    ],
)
def test_a_training_that_is_set_up_in_another_way_is_refused(tmp_path, changed, expected):
    training(tmp_path, epochs=5).run(stop_in_epoch=2)
    resumed = training(tmp_path, **changed, resume="auto")
    what = f"--resume {tmp_path / 'checkpoint_latest.pt'}"
    assert expected in refused(what, resumed.run, kind=ConfigError).problem


@pytest.mark.parametrize("stop", [2, 0], ids=["stopped", "ended"])
def test_a_training_whose_schedule_does_not_end_gets_more_epochs(tmp_path, stop):
    through = training(tmp_path / "through", schedule="steps", epochs=5)
    through.run()
    training(tmp_path / "stopped", schedule="steps", epochs=3).run(stop_in_epoch=stop)
    longer = training(tmp_path / "stopped", schedule="steps", epochs=5, resume="auto")
    longer.run()
    assert_same(through, longer)
    with pytest.raises(ConfigError, match="epochs 5, now 4"):
        training(tmp_path / "stopped", schedule="steps", epochs=4, resume="auto").run()


@pytest.mark.parametrize("schedule", ["cosine", "iterations"])
def test_more_epochs_than_its_schedule_are_refused(tmp_path, schedule):
    training(tmp_path, schedule=schedule, epochs=2).run(stop_in_epoch=2)
    longer = training(tmp_path, schedule=schedule, epochs=4, resume="auto")
    fix = refused(f"--resume {tmp_path / 'checkpoint_latest.pt'}", longer.run, kind=ConfigError).fix
    assert f"--pretrained {tmp_path / 'model.pt'}" in fix


def test_a_checkpoint_of_other_processes_or_of_another_version_is_refused(tmp_path, monkeypatch):
    training(tmp_path, epochs=3).run(stop_in_epoch=3)
    with monkeypatch.context() as patch:
        patch.setattr(resume.idist, "get_world_size", lambda: 2)
        with pytest.raises(ConfigError, match="processes 1, now 2"):
            training(tmp_path, epochs=3, resume="auto").run()
    with monkeypatch.context() as patch:
        patch.setattr(resume.idist, "all_gather", lambda epochs: [epochs, [0]])
        with pytest.raises(DataError, match="after different epochs: 0, 2"):
            training(tmp_path, epochs=3, resume="auto").run()
    torch.save({"model": {}, "trainer": {"epoch": 2}, "parts": {}, "settings": {}}, tmp_path / "checkpoint_latest.pt")
    with pytest.raises(DataError, match="another version of monai_attn wrote it"):
        training(tmp_path, resume="auto").run()


def test_a_network_of_another_width_is_refused_with_the_key_and_both_numbers(tmp_path):
    training(tmp_path).run(stop_in_epoch=2)
    error = refused(tmp_path / "checkpoint_latest.pt", training(tmp_path, width=6, resume="auto").run)
    assert "0.weight (4, 1, 3, 3), expected (6, 1, 3, 3)" in error.problem


def test_a_new_training_moves_a_stopped_one_aside_and_says_how_to_go_on_with_it(tmp_path, caplog):
    stopped = training(tmp_path)
    stopped.run(stop_in_epoch=3)
    weights = stopped.weights("model.pt")
    with caplog.at_level(logging.WARNING, "monai_attn"):
        training(tmp_path, seed=4).run(stop_in_epoch=2)
    assert "after epoch 2 of 5; --resume auto goes on with it" in caplog.text
    assert str(tmp_path / "previous_1") in caplog.text
    assert_equal(torch.load(tmp_path / "previous_1" / "model.pt", weights_only=True), weights)
    seeds = [json.loads((folder / "model.json").read_text())["seed"] for folder in (tmp_path / "previous_1", tmp_path)]
    assert seeds == [3, 4]
    assert (tmp_path / "model.pt").is_file()
    assert not (tmp_path / "model_final.pt").exists()
    # the second one has been stopped too, and may be continued as the first one may
    training(tmp_path, seed=5).run(stop_in_epoch=2)
    assert (tmp_path / "previous_2" / "checkpoint_latest.pt").is_file()
    training(tmp_path, resume=str(tmp_path / "previous_1" / "checkpoint_latest.pt")).run()
    assert (tmp_path / "previous_3" / "checkpoint_latest.pt").is_file()  # of the third, which was there


@pytest.mark.parametrize("links", [True, False], ids=["with links", "without links"])
def test_the_weights_of_a_stopped_training_stay_where_they_are_until_there_are_new_ones(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", Mock(side_effect=OSError))
    stopped = training(tmp_path)
    stopped.run(stop_in_epoch=3)
    weights = stopped.weights("model.pt")
    second = training(tmp_path, seed=4)
    second.run(stop_in_epoch=1)  # before its first validation
    assert_equal(second.weights("model.pt"), weights)
    assert (tmp_path / "previous_1" / "model.pt").is_file()


def test_the_weights_of_a_training_without_cases_to_validate_on_are_its_last_ones(tmp_path):
    without = training(tmp_path)
    without.evaluator.state.epoch_length = 0
    without.run()
    assert_equal(without.weights("model.pt"), without.weights("model_final.pt"))


def test_a_new_training_replaces_an_ended_one_with_a_warning_and_keeps_a_damaged_checkpoint(tmp_path, caplog):
    training(tmp_path, epochs=1).run()
    with caplog.at_level(logging.WARNING, "monai_attn"):
        training(tmp_path, epochs=1, seed=4).run()
    assert "will replace model.pt and model_final.pt" in caplog.text
    assert not (tmp_path / "previous_1").exists()
    (tmp_path / "checkpoint_latest.pt").write_bytes(b"PK half")
    with caplog.at_level(logging.WARNING, "monai_attn"):
        training(tmp_path, epochs=1).run()
    assert (tmp_path / "previous_1" / "checkpoint_latest.pt").read_bytes() == b"PK half"
    assert "that cannot be read" in caplog.text
