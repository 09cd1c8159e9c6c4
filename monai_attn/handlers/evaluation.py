# SPDX-License-Identifier: Apache-2.0
"""Handlers for evaluators: failed cases, validation loss, early stopping."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.utils import CommonKeys, ImageMetaKey, ensure_tuple, look_up_option

from monai_attn.data.reader import failure_in
from monai_attn.errors import ConfigError, Failure, root_cause
from monai_attn.handlers.checkpoint import keep_state

__all__ = ["EarlyStop", "SkipFailedCases", "ValidationLoss", "validation_loss"]


class SkipFailedCases:
    """Skip cases that fail; an ``iteration_update`` for evaluators.

    Any error in preparing a case (:class:`monai_attn.data.CaseDataset`), in the network or in writing a result is
    logged and added to ``engine.state.failures``; the output of that case is empty. A configuration error always ends
    the run.

    Args:
        on_error: ``"stop"`` to end the run with the first case that fails, ``"skip"`` to continue.

    Example:
        ``SupervisedEvaluator(..., iteration_update=SkipFailedCases("skip"))``
    """

    def __init__(self, on_error: str = "stop") -> None:
        self.on_error = look_up_option(on_error, ("stop", "skip"))

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> Any:
        """Segment a batch of one case; return nothing on failure."""
        if engine.state.iteration == 1:
            engine.state.failures, engine.state.segmented = [], 0
        idle = isinstance(batch.get(CommonKeys.IMAGE), list)  # no image, see CaseDataset
        failure = None if idle else failure_in(batch) or self._segment(engine, batch)
        if failure is None and not idle:
            engine.state.segmented += 1
            return engine.state.output
        if failure is not None:
            engine.state.failures.append(failure)
        engine.state.batch, engine.state.output = [], []
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # what was left where memory ran out
        return []

    def _segment(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> Failure | None:
        # The error is not handed on: with its frames it would keep the tensors of the case.
        try:
            engine._iteration(engine, batch)  # MONAI's own step, which it hands to nobody who replaces it
            return None
        except Exception as error:
            if self.on_error == "stop" or isinstance(root_cause(error), ConfigError):
                raise
            meta = getattr(batch[CommonKeys.IMAGE], "meta", {})
            case = str(ensure_tuple(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "a case"))[0])
            logging.getLogger(__name__).exception("%s has no result", case)
            return Failure.of(error, case)


class ValidationLoss:
    """Add the mean validation loss, ``val_loss``, to the metrics.

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
    """Return an evaluator's validation loss for ``ReduceLROnPlateau``.

    Example:
        ``LrScheduleHandler(ReduceLROnPlateau(optimizer), step_transform=validation_loss)`` among its handlers.
    """
    return engine.state.metrics["val_loss"]


class EarlyStop:
    """Stop training when a validation metric no longer falls.

    It is ignite's ``EarlyStopping`` for ``patience`` validations, whose state is resumed with the training.

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
