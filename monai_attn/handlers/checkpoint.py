# SPDX-License-Identifier: Apache-2.0
"""Write and load weights; a file is whole at every moment, whatever stops the process."""

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
from ignite.handlers.checkpoint import BaseSaveHandler
from monai.handlers import CheckpointLoader
from torch import nn

from monai_attn.errors import DataError
from monai_attn.files import atomic_write
from monai_attn.weights.checkpoint import load_weights

__all__ = ["AtomicSaver", "BestModelSaver", "SafeCheckpointLoader", "keep_state"]


def keep_state(engine: Engine, name: str, part: Any) -> None:
    """Have :class:`monai_attn.handlers.TrainingCheckpoint` save a handler's state, too.

    Args:
        engine: the trainer or the evaluator that the handler is being attached to.
        name: a name for the handler.
        part: the handler, with ``state_dict`` and ``load_state_dict``.

    Example:
        ``keep_state(engine, "curves", self)`` in the handler's ``attach``
    """
    state: Any = engine.state
    state.to_save = {**getattr(state, "to_save", {}), name: part}


class AtomicSaver(BaseSaveHandler):
    """Save files for ignite's ``Checkpoint``, each whole or not at all.

    The old or the new file is there even if the disk is full or the power fails. Of several processes the first one
    writes, by :func:`monai_attn.files.atomic_write`.

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


class BestModelSaver:
    """Save the weights of the best validation so far, as a state dict.

    A metric that is NaN, because no case has the structure or the network diverged, is worse than any number.

    Args:
        save_dir: folder to write to.
        network: the network, not wrapped.
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
        self.save = AtomicSaver(save_dir)
        self.network = network
        self.metric = metric
        self.sign = -1 if lower_is_better else 1
        self.filename = filename
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        keep_state(engine, "best_model", self)
        engine.add_event_handler(Events.STARTED, self._prepare)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _prepare(self, _engine: Engine) -> None:
        self.save.prepare()

    def __call__(self, engine: Engine) -> None:
        """Save the network if its metric is the best."""
        state: Any = engine.state
        score = self.sign * float(state.metrics[self.metric or state.key_metric_name])
        if score > self.best:
            self.save(self.network.state_dict(), self.filename)
            self.best = score
        if math.isnan(state.best_metric):
            state.best_metric_epoch = -1  # MONAI finds no metric better than NaN: have it take the next one

    def state_dict(self) -> dict[str, float]:
        """Return the best score."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: Mapping[str, float]) -> None:
        """Take the best score of a training that goes on."""
        self.best = state_dict["best"]


class SafeCheckpointLoader(CheckpointLoader):
    """Load weights when an engine starts, completely or not at all.

    MONAI's ``CheckpointLoader``, but damaged files and weights of another network are refused
    (:func:`monai_attn.weights.load_weights`).

    Args:
        load_path: ``model.pt``, a checkpoint, or another state dict of the network.
        load_dict: the network by any name, such as ``{"model": network}``.

    Raises:
        DataError: when the engine starts, if the file cannot be used.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[SafeCheckpointLoader("models/model.pt", {"model": network})])``
    """

    def __call__(self, engine: Engine) -> None:
        """Load the weights."""
        for network in self.load_dict.values():
            load_weights(network, self.load_path)
