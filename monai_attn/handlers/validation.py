# SPDX-License-Identifier: Apache-2.0
"""Validation loss, and early stopping when it no longer falls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.engines import IterationEvents
from monai.utils import CommonKeys

from monai_attn.handlers.checkpoint import keep_state

__all__ = ["EarlyStop", "ValidationLoss", "validation_loss"]


class ValidationLoss:
    """Add the mean validation loss to an evaluator's metrics, as ``val_loss``.

    It is taken from the network's output, before any post-processing.

    Args:
        loss_function: called with logits and target, as in training.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[ValidationLoss(loss)])``
    """

    def __init__(self, loss_function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        self.loss_function = loss_function
        self.total, self.count = 0.0, 0

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._finish)

    def _reset(self, _engine: Engine) -> None:
        self.total, self.count = 0.0, 0

    def _update(self, engine: Engine) -> None:
        output: Any = engine.state.output
        with torch.no_grad():
            loss = self.loss_function(output[CommonKeys.PRED], output[CommonKeys.LABEL])
        cases = len(output[CommonKeys.PRED])
        self.total += float(loss) * cases
        self.count += cases

    def _finish(self, engine: Engine) -> None:
        total, count = (float(idist.all_reduce(value)) for value in (self.total, float(self.count)))
        engine.state.metrics["val_loss"] = total / count


def validation_loss(engine: Engine) -> float:
    """Return the validation loss of an evaluator, for a schedule on plateaus.

    Example:
        ``LrScheduleHandler(ReduceLROnPlateau(optimizer), step_transform=validation_loss)`` among its handlers.
    """
    return engine.state.metrics["val_loss"]


class EarlyStop:
    """Stop training when a validation metric no longer falls.

    Ignite's ``EarlyStopping`` on the evaluator, attached to the trainer, which resumes its state.

    Args:
        validator: the evaluator whose metric is watched.
        metric: name of the metric; lower is better.
        patience: number of validations without a new minimum to wait for.

    Example:
        ``SupervisedTrainer(..., train_handlers=[EarlyStop(evaluator, "val_loss", patience=5)])``
    """

    def __init__(self, validator: Engine, metric: str = "val_loss", patience: int = 5) -> None:
        self.validator = validator
        self.metric = metric
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        stopping = EarlyStopping(self.patience, lambda validator: -validator.state.metrics[self.metric], engine)
        self.validator.add_event_handler(Events.EPOCH_COMPLETED, stopping)
        keep_state(engine, "early_stop", stopping)
