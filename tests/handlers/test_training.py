# SPDX-License-Identifier: Apache-2.0
import io
import logging
import random
import sys
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer
from monai.handlers import StatsHandler, TensorBoardStatsHandler, from_engine
from monai.transforms import RandGaussianNoise
from torch.utils.data import ConcatDataset

from monai_attn.errors import DataError
from monai_attn.handlers import (
    AverageStatistics,
    CurveSaver,
    EpochProgressBar,
    EpochSeed,
    LossTerms,
    StopOnNonFinite,
    training,
)
from monai_attn.losses import EGCNNLoss

from ..conftest import Terminal, read_csv, refused
from .conftest import make_trainer


def draws(*, number: int = 0, workers: int = 0, epochs: int = 3, copies: int = 1) -> list[list[float]]:
    """What the epochs of a training draw from each source of random numbers."""
    dataset = Dataset([torch.zeros(1, 4)] * 4, RandGaussianNoise(prob=1.0))
    loader = DataLoader(ConcatDataset([dataset] * copies), batch_size=1, shuffle=True, num_workers=workers)
    drawn: list[list[float]] = []

    def step(engine, batch):
        drawn[-1] += [batch.sum().item(), torch.rand(1).item(), np.random.rand(), random.random()]

    engine = Engine(step)
    engine.data_loader = loader
    engine.add_event_handler("EPOCH_STARTED", lambda: drawn.append([]))
    EpochSeed(number).attach(engine)
    engine.run(loader, max_epochs=epochs)
    return drawn


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_draws_the_same_in_every_training_and_each_epoch_its_own(workers):
    first = draws(workers=workers)
    torch.rand(5)
    np.random.rand(5)
    assert draws(workers=workers, epochs=2) == first[:2]
    assert first[0] != first[1] != first[2]
    assert all(a != b for a, b in zip(first[0], first[1]))
    assert draws(workers=workers, epochs=1, copies=2) == draws(workers=workers, epochs=1, copies=2)


def test_seeds_and_processes_draw_differently(monkeypatch):
    first = draws(epochs=1)
    assert draws(number=1, epochs=1) != first
    monkeypatch.setattr(training.idist, "get_rank", lambda: 1)
    assert draws(epochs=1) != first


def trainer(values: list[float], lr: float = 0.1) -> SupervisedTrainer:
    """A trainer whose images hold one value each."""
    images = [
        MetaTensor(torch.full((1, 2, 2), value), meta={"filename_or_obj": f"/secret/case{i}.nii.gz"})
        for i, value in enumerate(values)
    ]
    batches = DataLoader(Dataset([{"image": x, "label": torch.zeros(1, 2, 2)} for x in images]), batch_size=2)
    handlers = [StopOnNonFinite()]
    return make_trainer(torch.nn.Conv2d(1, 1, 1), batches, torch.nn.MSELoss(), handlers, max_epochs=2, lr=lr)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_the_first_loss_that_is_not_finite_stops_the_training_with_the_cases_and_keeps_the_weights(value):
    engine = trainer([1.0, 1.0, 1.0, value])
    assert "in iteration 2 (epoch 1)" in refused("the cases case2, case3", engine.run).problem
    assert all(weight.isfinite().all() for weight in engine.network.parameters())


def test_weights_that_are_not_finite_are_found_when_the_epoch_ends():
    engine = trainer([1e3, 1e3], lr=3e38)  # the loss is that of the step before
    with pytest.raises(DataError, match="NaN or infinite after epoch 1"):
        engine.run()


def test_a_step_that_is_left_out_for_infinite_gradients_is_no_error():
    engine = trainer([1.0, 1.0])

    class Scaler:
        """A gradient scaler that finds infinite gradients every time."""

        scale = staticmethod(lambda loss: loss * float("inf"))
        step = update = staticmethod(lambda *_: None)

    @engine.on(Events.STARTED)
    def simulate_amp():
        engine.amp, engine.scaler = True, Scaler()

    before = [weight.clone() for weight in engine.network.parameters()]
    engine.run()
    assert engine.state.epoch == 2
    assert all(map(torch.equal, before, engine.network.parameters()))


@pytest.fixture
def network():
    return torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))


def train_batches(network, iterations=3):
    """Two epochs; returns the running means that the end of each epoch sees."""
    seen = []
    engine = Engine(lambda _engine, batch: network(batch))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(network[2].running_mean.clone()))
    AverageStatistics(network).attach(engine)
    torch.manual_seed(0)
    engine.run([torch.rand(2, 3, 4, 4) for _ in range(iterations)], max_epochs=2)
    return seen


def test_the_end_of_an_epoch_sees_the_mean_over_the_processes(network, monkeypatch):
    sums = []

    def add_another_process(total):
        sums.append(total)
        return total + 2 * torch.ones_like(total)

    monkeypatch.setattr(training.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(training.idist, "all_reduce", add_another_process)
    before = {name: value.clone() for name, value in network.named_parameters()}
    seen = train_batches(network)
    assert [len(total) for total in sums] == [10, 10]  # means and variances of 3 + 2 channels, once an epoch
    for mean, total in zip(seen, sums):
        torch.testing.assert_close(mean, total[6:8] / 2 + 1)
    assert network[0].num_batches_tracked == 6
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_one_process_keeps_its_statistics(network, monkeypatch):
    monkeypatch.setattr(training.idist, "all_reduce", None)
    train_batches(network)


def test_a_network_without_statistics_has_none_to_average(monkeypatch):
    monkeypatch.setattr(training.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(training.idist, "all_reduce", None)
    engine = Engine(lambda engine, batch: None)
    AverageStatistics(torch.nn.InstanceNorm2d(2)).attach(engine)
    engine.run([0])


class TwoTerms(torch.nn.Module):
    """A loss whose terms are known: the mean of the input, and twice that."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        mean = input.mean()
        self.terms = {"one": mean.detach(), "two": 2 * mean.detach()}
        return mean


def train_with_terms(loss: TwoTerms, values: list[float], epochs: int = 1, handlers: tuple = ()) -> SupervisedTrainer:
    """Run a trainer whose loss is the next of the values in every iteration."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    batches = [{"image": torch.full((1, 1), value), "label": torch.zeros(1, 1)} for value in values]
    trainer = make_trainer(network, batches, loss, handlers, max_epochs=epochs, lr=0.0)
    trainer.run()
    return trainer


def test_the_mean_of_each_term_is_a_metric_of_the_trainer():
    loss = TwoTerms()
    trainer = train_with_terms(loss, [1.0, 2.0, 6.0], handlers=(LossTerms(loss),))
    assert trainer.state.metrics == {"loss_one": pytest.approx(3.0), "loss_two": pytest.approx(6.0)}


def test_every_epoch_starts_anew_and_has_no_mean_until_its_end():
    seen, values = [], iter([1.0, 3.0, 5.0, 7.0])

    def see(engine):
        seen.append(dict(engine.state.metrics))

    class See:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, see)

    class NextLoss(TwoTerms):
        def forward(self, input, target):
            return super().forward(0 * input + next(values), target)

    loss = NextLoss()
    train_with_terms(loss, [0.0, 0.0], epochs=2, handlers=(See(), LossTerms(loss)))
    assert seen == [{}, {"loss_one": 2.0, "loss_two": 4.0}, {}, {"loss_one": 6.0, "loss_two": 12.0}]


def test_a_validation_with_the_same_loss_between_two_iterations_changes_nothing():
    loss = TwoTerms()

    class Validate:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: loss(torch.tensor([100.0]), None))

    trainer = train_with_terms(loss, [1.0, 2.0, 6.0], handlers=(Validate(), LossTerms(loss)))
    assert trainer.state.metrics["loss_one"] == pytest.approx(3.0)


def test_monais_logs_and_the_curves_show_one_value_for_each_epoch(tmp_path, capsys):
    loss, writer = TwoTerms(), Mock()
    shown = (
        StatsHandler(name="terms", iteration_log=False, output_transform=from_engine("loss", first=True)),
        TensorBoardStatsHandler(writer, iteration_log=False),
        CurveSaver(str(tmp_path)),
    )
    train_with_terms(loss, [1.0, 2.0, 6.0], epochs=2, handlers=(*shown, LossTerms(loss)))
    assert capsys.readouterr().out.count("loss_one: 3.0000 loss_two: 6.0000") == 2
    written = [(call.args[0], call.args[2]) for call in writer.add_scalar.call_args_list]
    assert written == [("loss_one", 1), ("loss_two", 1), ("loss_one", 2), ("loss_two", 2)]
    rows = [tuple(row.values()) for row in read_csv(tmp_path / "curves.csv") if row["name"] == "loss_one"]
    assert rows == [("3", "loss_one", "3.0"), ("6", "loss_one", "3.0")]


def test_a_loss_without_terms_is_refused():
    with pytest.raises(TypeError, match="L1Loss has none"):
        LossTerms(torch.nn.L1Loss())


def test_the_terms_of_egcnn_are_shown():
    class TwoOutputs(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.segmentation, self.edges = torch.nn.Conv2d(1, 3, 1), torch.nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.segmentation(x), self.edges(x)

    network, loss = TwoOutputs(), EGCNNLoss()
    label = torch.zeros(2, 1, 8, 8)
    label[..., 3:6] = 1
    batch = {"image": MetaTensor(torch.rand(2, 1, 8, 8)), "label": MetaTensor(label)}
    trainer = make_trainer(network, [batch], loss, [LossTerms(loss)])
    trainer.run()
    terms = {name.removeprefix("loss_"): value for name, value in trainer.state.metrics.items()}
    assert list(terms) == ["semantic", "consistency", "edge_dice", "edge_bce"]
    assert float(trainer.state.output[0]["loss"]) == pytest.approx(
        terms["semantic"] + terms["consistency"] + terms["edge_dice"] + 0.5 * terms["edge_bce"]
    )


def test_a_resumed_training_shows_its_scores_before_the_first_validation(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    engine, evaluator = Engine(lambda engine, batch: [{"loss": batch}]), Engine(lambda *_: None)
    evaluator.state.key_metric_name, evaluator.state.metrics = "dice", {"dice": 0.5}  # what a checkpoint restores
    EpochProgressBar(evaluator=evaluator).attach(engine)
    engine.run([1.0], max_epochs=1)
    assert "dice 0.5" in sys.stderr.getvalue()


@pytest.mark.parametrize(
    ("terminal", "output"), [(Terminal(), lambda loss: [{"loss": loss}]), (io.StringIO(), lambda loss: {"loss": loss})]
)
def test_progress_is_a_bar_on_a_terminal_and_a_line_per_epoch_elsewhere(monkeypatch, caplog, terminal, output):
    monkeypatch.setattr(sys, "stderr", terminal)
    engine, evaluator = Engine(lambda engine, batch: output(batch / 8)), Engine(lambda *_: None)
    scores = {"key_metric_name": "dice", "metric_details": {"dice": torch.tensor([[0.5, torch.nan], [1.0, 0.25]])}}
    for name, value in scores.items():
        setattr(evaluator.state, name, value)

    def validate(engine):
        evaluator.run([1], max_epochs=engine.state.epoch)
        evaluator.state.metrics["dice"] = 0.5

    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), validate)
    caplog.set_level(logging.INFO, "monai_attn.progress")
    EpochProgressBar(evaluator=evaluator, structures=["liver", "tumor"]).attach(engine)
    engine.run([1, 2, 3], max_epochs=2)
    text = terminal.getvalue()
    assert ("epoch 2/2: 100%" in text, "loss 0.25, dice 0.5, liver 0.75, tumor 0.25" in text, "validation" in text) == (
        (terminal.isatty(),) * 3
    )
    lines = [message.rsplit(", ", 1)[0] for message in caplog.messages]
    expected = ["epoch 1/2: loss 0.25, dice 0.5, liver 0.75, tumor 0.25", "epoch 2/2: loss 0.25"]
    assert lines == ([] if terminal.isatty() else expected)
