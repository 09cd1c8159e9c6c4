# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Events
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.handlers import StatsHandler, TensorBoardStatsHandler

from monai_attn.handlers import CurveSaver, LossTerms, training_loss
from monai_attn.losses import EGCNNLoss


class TwoTerms(torch.nn.Module):
    """A loss whose terms are known: the mean of the input, and twice that."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        mean = input.mean()
        self.terms = {"one": mean.detach(), "two": 2 * mean.detach()}
        return mean


def train(loss: TwoTerms, values: list[float], epochs: int = 1, handlers: tuple = ()) -> SupervisedTrainer:
    """Run a trainer whose loss is the next of the values in every iteration."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    batches = [{"image": torch.full((1, 1), value), "label": torch.zeros(1, 1)} for value in values]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=epochs,
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=loss,
        train_handlers=list(handlers),
        decollate=False,
    )
    trainer.run()
    return trainer


def test_the_mean_of_each_term_is_a_metric_of_the_trainer():
    loss = TwoTerms()
    trainer = train(loss, [1.0, 2.0, 6.0], handlers=(LossTerms(loss),))
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
    train(loss, [0.0, 0.0], epochs=2, handlers=(See(), LossTerms(loss)))
    assert seen == [{}, {"loss_one": 2.0, "loss_two": 4.0}, {}, {"loss_one": 6.0, "loss_two": 12.0}]


def test_other_metrics_of_the_trainer_are_left_alone():
    loss = TwoTerms()

    class Other:
        def attach(self, engine):
            engine.add_event_handler(Events.STARTED, lambda: engine.state.metrics.update(other=1.0))

    trainer = train(loss, [1.0], epochs=2, handlers=(Other(), LossTerms(loss)))
    assert trainer.state.metrics["other"] == 1.0


def test_a_validation_with_the_same_loss_between_two_iterations_changes_nothing():
    loss = TwoTerms()

    class Validate:
        def attach(self, engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: loss(torch.tensor([100.0]), None))

    trainer = train(loss, [1.0, 2.0, 6.0], handlers=(Validate(), LossTerms(loss)))
    assert trainer.state.metrics["loss_one"] == pytest.approx(3.0)


def test_monais_logs_and_the_curves_show_one_value_for_each_epoch(tmp_path, capsys):
    loss, written = TwoTerms(), []

    class Writer:
        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def flush(self):
            pass

        def close(self):
            pass

    shown = (
        StatsHandler(name="terms", iteration_log=False, output_transform=training_loss),
        TensorBoardStatsHandler(Writer(), iteration_log=False),
        CurveSaver(str(tmp_path)),
    )
    train(loss, [1.0, 2.0, 6.0], epochs=2, handlers=(*shown, LossTerms(loss)))
    assert capsys.readouterr().out.count("loss_one: 3.0000 loss_two: 6.0000") == 2
    assert [(name, step) for name, _, step in written] == [
        ("loss_one", 1),
        ("loss_two", 1),
        ("loss_one", 2),
        ("loss_two", 2),
    ]
    with open(tmp_path / "curves.csv") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file) if row["name"] == "loss_one"]
    assert rows == [("3", "loss_one", "3.0"), ("6", "loss_one", "3.0")]


def test_the_mean_is_that_of_all_processes(monkeypatch):
    loss, reductions = TwoTerms(), []

    def all_reduce(tensor):  # another process had a single iteration with the terms 9 and 18
        reductions.append(tensor.tolist())
        return tensor + torch.tensor([9.0, 18.0, 1.0])

    monkeypatch.setattr(idist, "all_reduce", all_reduce)
    trainer = train(loss, [1.0, 2.0, 6.0], handlers=(LossTerms(loss),))
    assert reductions == [[9.0, 18.0, 3.0]]
    assert trainer.state.metrics == {"loss_one": pytest.approx(18 / 4), "loss_two": pytest.approx(36 / 4)}


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
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": MetaTensor(torch.rand(2, 1, 8, 8)), "label": MetaTensor(label)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=loss,
        train_handlers=[LossTerms(loss)],
        decollate=False,
    )
    trainer.run()
    terms = {name.removeprefix("loss_"): value for name, value in trainer.state.metrics.items()}
    assert list(terms) == ["semantic", "consistency", "edge_dice", "edge_bce"]
    assert training_loss(trainer.state.output) == pytest.approx(
        terms["semantic"] + terms["consistency"] + terms["edge_dice"] + 0.5 * terms["edge_bce"]
    )
