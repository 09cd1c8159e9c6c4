# SPDX-License-Identifier: Apache-2.0
"""Handlers for evaluators: failed cases, validation loss, early stopping."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, Literal

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from ignite.metrics import Loss
from ignite.metrics.metric import MetricUsage
from monai.engines import IterationEvents, SupervisedEvaluator
from monai.utils import CommonKeys, ImageMetaKey, ensure_tuple, look_up_option

from monai_attn.data.reader import failure_in
from monai_attn.errors import ConfigError, DataError, Failure, root_cause
from monai_attn.handlers.checkpoint import keep_state

__all__ = ["EarlyStop", "SkipFailedCases", "ValidationLoss", "check_scores", "validation_loss"]


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

    def __init__(self, on_error: Literal["stop", "skip"] = "stop") -> None:
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
            with engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, lambda: check_scores(engine.state.output)):
                engine._iteration(engine, batch)  # MONAI's own step has no public name
            return None
        except Exception as error:
            if self.on_error == "stop" or isinstance(root_cause(error), ConfigError):
                raise
            case = _name_of(batch)
            logging.getLogger(__name__).exception("%s has no result", case)
            return Failure.of(error, case)


def check_scores(case: Mapping[str, Any]) -> None:
    """Raise for scores that are NaN, or of another size than the image.

    Args:
        case: image and scores (``pred``), of one case or of a batch of one.

    Raises:
        DataError: if a score is NaN, or an axis of the scores is not that of the image.
    """
    dims = case[CommonKeys.IMAGE].ndim - 2
    scores, image = (tuple(case[key].shape[-dims:]) for key in (CommonKeys.PRED, CommonKeys.IMAGE))
    if scores != image:
        raise DataError(_name_of(case), f"its scores end with the axes {scores}, not {image}", "give another inferer")
    if case[CommonKeys.PRED].isnan().any():
        raise DataError(_name_of(case), "the network's scores for it are NaN", "give --amp False, or earlier weights")


def _name_of(case: Mapping[str, Any]) -> str:
    meta = getattr(case[CommonKeys.IMAGE], "meta", {})
    return str(ensure_tuple(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "a case"))[0])


class ValidationLoss(Loss):
    """Add the mean validation loss, ``val_loss``, to the metrics.

    It is ignite's ``Loss`` of the network's output before the post-processing.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[ValidationLoss(loss)])``
    """

    def __init__(self, loss_function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__(loss_function, itemgetter(CommonKeys.PRED, CommonKeys.LABEL))

    def attach(self, engine: Engine) -> None:  # type: ignore[override]
        """Attach to an evaluator."""
        usage = MetricUsage(Events.EPOCH_STARTED, Events.EPOCH_COMPLETED, IterationEvents.FORWARD_COMPLETED)
        super().attach(engine, "val_loss", usage)


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
