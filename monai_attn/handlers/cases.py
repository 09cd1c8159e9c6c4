# SPDX-License-Identifier: Apache-2.0
"""Inference in which one bad case does not end the run."""

from __future__ import annotations

import logging
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.utils import CommonKeys, ImageMetaKey, ensure_tuple, look_up_option

from monai_attn.data.reader import failure_in
from monai_attn.errors import ConfigError, Failure, root_cause

__all__ = ["SkipFailedCases"]


class SkipFailedCases:
    """Go on with the next case where one fails; the ``iteration_update`` of an evaluator.

    Whatever goes wrong while a case is prepared (see :class:`monai_attn.data.CaseDataset`), in the network, or while
    its result is written is added to ``engine.state.failures``, and the case's output is empty. The trace goes to the
    log. An error of the configuration ends the run, as it would hit every case.

    Args:
        on_error: ``"stop"`` to end the run with the first case that fails, ``"skip"`` to go on.

    Example:
        ``SupervisedEvaluator(..., iteration_update=SkipFailedCases("skip"))``
    """

    def __init__(self, on_error: str = "stop") -> None:
        self.on_error = look_up_option(on_error, ("stop", "skip"))

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> Any:
        """Segment a batch of one case; returns the engine's output, or nothing for a case that failed."""
        if engine.state.iteration == 1:
            engine.state.failures = []
        failure = failure_in(batch) or self._segment(engine, batch)
        if failure is None:
            return engine.state.output
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
