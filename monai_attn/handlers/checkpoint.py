# SPDX-License-Identifier: Apache-2.0
"""Files of weights that are whole at every moment, whatever stops the process, and how to load them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler
from torch import nn

from monai_attn.errors import DataError
from monai_attn.files import atomic_write
from monai_attn.weights.checkpoint import load_weights

__all__ = ["AtomicSaver", "BestModelSaver", "SafeCheckpointLoader", "keep_state"]


class AtomicSaver(BaseSaveHandler):
    """Write files of which a whole one, the old or the new, is there even if the disk is full or the power fails.

    Of several processes the first one writes, by :func:`monai_attn.files.atomic_write`.

    Args:
        save_dir: folder to write to.

    Example:
        ``ignite.handlers.Checkpoint({"model": network}, AtomicSaver("models"), filename_pattern="model.pt")``
    """

    def __init__(self, save_dir: str | os.PathLike) -> None:
        self.save_dir = Path(save_dir)

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        """Write a file.

        Raises:
            DataError: if it cannot be written; the old file is then as before.
        """
        if idist.get_rank() > 0:
            return
        fix = "make room there or give another ckpt_dir; an older file is as it was, and --resume auto continues"
        with atomic_write(self.save_dir / filename, fix) as draft, draft.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch has one of its own on top of that of the file
                raise error.__context__ if isinstance(error.__context__, OSError) else OSError(str(error)) from None

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            DataError: if it cannot be written to.
        """
        if idist.get_rank() > 0:
            return
        try:
            self.save_dir.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=self.save_dir):
                pass
        except OSError as error:
            raise DataError(
                str(self.save_dir), f"it cannot be written: {error.strerror}", "give another ckpt_dir"
            ) from error

    def remove(self, filename: str) -> None:
        """Keep the old file: the new one replaces it."""


class BestModelSaver(Checkpoint):
    """Write the weights of the best validation so far, as a state dict.

    Ignite's ``Checkpoint`` with a fixed file name. A metric that is NaN, because no case has the structure or the
    network diverged, is worse than any number.

    Args:
        save_dir: folder to write to.
        network: the network.
        metric: name of the metric that decides, by default the evaluator's key metric.
        lower_is_better: whether the metric is a loss or a distance.
        filename: name of the file.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[BestModelSaver("models", network)])``
    """

    def __init__(
        self,
        save_dir: str,
        network: nn.Module,
        *,
        metric: str | None = None,
        lower_is_better: bool = False,
        filename: str = "model.pt",
    ) -> None:
        self.saver = AtomicSaver(save_dir)
        super().__init__({"model": network}, self.saver, score_function=self._score, filename_pattern=filename)
        self.metric = metric
        self.lower_is_better = lower_is_better
        self.filename = filename

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        keep_state(engine, "best_model", self)
        engine.add_event_handler(Events.STARTED, self._prepare)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._forget_nan)

    def _prepare(self, _engine: Engine) -> None:
        self.saver.prepare()

    def _forget_nan(self, engine: Engine) -> None:
        """Have MONAI take the next metric as the best one yet, for it finds none better than NaN."""
        state: Any = engine.state
        if isinstance(state.best_metric, float) and math.isnan(state.best_metric):
            state.best_metric_epoch = -1

    def _score(self, engine: Engine) -> float:
        state: Any = engine.state
        value = float(state.metrics[self.metric or state.key_metric_name])
        if math.isnan(value):
            return -math.inf
        return -value if self.lower_is_better else value


class SafeCheckpointLoader:
    """Load a network's weights when an engine starts, see ``monai_attn.weights.checkpoint.load_weights``.

    Args:
        path: ``model.pt``, a checkpoint, or another state dict of the network.
        network: the network.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[SafeCheckpointLoader("models/model.pt", network)])``
    """

    def __init__(self, path: str, network: nn.Module) -> None:
        self.path = path
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to an engine."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, _engine: Engine) -> None:
        """Load the weights."""
        load_weights(self.network, self.path)


def keep_state(engine: Engine, name: str, part: Any) -> None:
    """Have :class:`monai_attn.handlers.TrainingCheckpoint` keep a handler's state along with that of its engine.

    Args:
        engine: the engine that the handler is being attached to.
        name: a name for the handler.
        part: the handler, with ``state_dict`` and ``load_state_dict``.
    """
    state: Any = engine.state
    state.parts = {**getattr(state, "parts", {}), name: part}
