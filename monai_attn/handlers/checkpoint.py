# SPDX-License-Identifier: Apache-2.0
"""Save and load weights safely."""

from __future__ import annotations

import json
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
from torch.jit import ScriptModule

from monai_attn.files import atomic_write, writing_to
from monai_attn.weights.checkpoint import load_weights

__all__ = ["BEST", "DESCRIPTION", "AtomicSaver", "BestModelSaver", "SafeCheckpointLoader", "keep_state"]

BEST, DESCRIPTION = "model.pt", "model.json"


def keep_state(engine: Engine, name: str, part: Any) -> None:
    """Include a handler, with ``state_dict``, in the training checkpoint.

    Example:
        ``keep_state(engine, "curves", self)`` in the handler's ``attach``
    """
    state: Any = engine.state
    state.to_save = {**getattr(state, "to_save", {}), name: part}


class AtomicSaver(BaseSaveHandler):
    """Save checkpoints of ignite atomically, on the first process only.

    Example:
        ``ignite.handlers.Checkpoint({"model": network}, AtomicSaver("models"), filename_pattern="model.pt")``
    """

    def __init__(self, save_dir: str | os.PathLike) -> None:
        self.save_dir = Path(save_dir)

    def __call__(self, checkpoint: Mapping, filename: str, metadata: Mapping | None = None) -> None:
        """Write a file.

        Raises:
            DataError: if it cannot be written; the old file is kept.
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
        """Create the folder.

        Raises:
            DataError: if it is not writable.
        """
        if idist.get_rank() > 0:
            return
        with writing_to(self.save_dir, "give another ckpt_dir"):
            self.save_dir.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.save_dir).close()

    def remove(self, filename: str) -> None:
        """Do nothing: with the same name, the new file replaces the old one."""


class BestModelSaver:
    """Save the state dict of the best validation.

    NaN counts as worse than any number.

    Args:
        save_dir: folder of the file, ``model.pt``.
        network: the network, not wrapped.
        metric: name of the metric to compare, by default the evaluator's key metric.
        lower_is_better: whether the metric is a loss or a distance.
        description: content of ``model.json`` beside the file, such as classes; by default there is no such file.

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
        description: Mapping[str, Any] | None = None,
    ) -> None:
        self.save = AtomicSaver(save_dir)
        self.network = network
        self.metric = metric
        self.sign = -1 if lower_is_better else 1
        self.description = description
        self.best = -math.inf

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        keep_state(engine, "best_model", self)
        engine.add_event_handler(Events.STARTED, self.save.prepare)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the weights if the metric has improved."""
        state: Any = engine.state
        score = self.sign * float(state.metrics[self.metric or state.key_metric_name])
        if score > self.best:
            self.save(self.network.state_dict(), BEST)
            self.describe({"epoch": state.epoch, **state.metrics})
            self.best = score
        if math.isnan(state.best_metric):
            state.best_metric_epoch = -1  # MONAI finds no metric better than NaN: have it take the next one

    def describe(self, validation: Mapping[str, Any] | None = None) -> None:
        """Write ``model.json``, with the numbers of a validation."""
        if self.description is None or idist.get_rank() > 0:
            return
        numbers = {key: value for key, value in (validation or {}).items() if isinstance(value, (int, float))}
        with atomic_write(self.save.save_dir / DESCRIPTION, "make room, or give another ckpt_dir") as draft:
            draft.write_text(
                json.dumps({**self.description, "validation": numbers}, indent=2, default=str) + "\n", "utf-8"
            )

    def state_dict(self) -> dict[str, float]:
        """Return the best score."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: Mapping[str, float]) -> None:
        """Restore the best score."""
        self.best = state_dict["best"]


class SafeCheckpointLoader(CheckpointLoader):
    """Load a checkpoint, all or nothing, when the engine starts.

    Only ``load_path`` and ``load_dict`` of MONAI's ``CheckpointLoader`` matter. Loading is strict; damaged files and
    weights of another network are refused (:func:`monai_attn.weights.load_weights`). A network in TorchScript keeps the
    weights that it has.

    Raises:
        DataError: when the engine starts, if the file cannot be used.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[SafeCheckpointLoader("models/model.pt", {"model": network})])``
    """

    def attach(self, engine: Engine) -> None:
        """Attach to an engine, and tell :class:`monai_attn.run.RunManifest` of the file."""
        self.load_dict = {name: part for name, part in self.load_dict.items() if not isinstance(part, ScriptModule)}
        state: Any = engine.state
        state.weights = [self.load_path] if self.load_dict else []
        super().attach(engine)

    def __call__(self, engine: Engine) -> None:
        """Load the weights."""
        for network in self.load_dict.values():
            load_weights(network, self.load_path)
