# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import LrScheduleHandler

from monai_attn.handlers import EarlyStop, ValidationLoss, validation_loss


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


def test_a_plateau_of_five_validations_halves_the_learning_rate_as_keras_with_patience_five():
    """Keras cuts at the fifth validation without a gain of min_delta, PyTorch behind the fourth."""
    losses = [1.0, 0.9, 0.8995, 0.8995, 0.8992, 0.8991, 0.8991, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
    expected = [1.0] * 6 + [0.5] * 6 + [0.25]  # 0.9 is the best until 0.8; five worse ones after each
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=4, threshold=1e-3, threshold_mode="abs"
    )
    evaluator, values, rates = Engine(lambda engine, batch: None), iter(losses), []
    evaluator.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.state.metrics.update(val_loss=next(values)))
    LrScheduleHandler(schedule, print_lr=False, step_transform=validation_loss).attach(evaluator)
    for _ in losses:
        evaluator.run([1])
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == expected
