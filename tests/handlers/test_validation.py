# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator

from monai_attn.handlers import EarlyStop, ValidationLoss


def test_the_validation_loss_is_the_mean_over_cases_of_any_batch_size():
    batches = [
        {"image": torch.tensor([[1.0], [2.0]]), "label": torch.zeros(2, 1)},
        {"image": torch.tensor([[6.0]]), "label": torch.zeros(1, 1)},
    ]
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=batches,
        network=torch.nn.Identity(),
        val_handlers=[ValidationLoss(torch.nn.L1Loss())],
        decollate=False,
    )
    for _ in range(2):  # a second epoch starts anew
        evaluator.run()
        assert evaluator.state.metrics["val_loss"] == pytest.approx((1 + 2 + 6) / 3)


def test_training_stops_when_the_metric_has_not_fallen_for_the_patience():
    losses = iter([3.0, 2.0, 2.5, 2.4, 1.0, 0.5])
    evaluator = Engine(lambda engine, batch: None)
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.state.metrics.update(val_loss=next(losses)))
    trainer = Engine(lambda engine, batch: None)
    EarlyStop(evaluator, "val_loss", patience=2).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([1]))
    trainer.run([1], max_epochs=6)
    assert trainer.state.epoch == 4
