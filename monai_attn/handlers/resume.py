# SPDX-License-Identifier: Apache-2.0
"""A training that goes on where it was stopped, and ends as if nothing had happened."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import nn

from monai_attn.errors import ConfigError, DataError
from monai_attn.handlers.checkpoint import AtomicSaver, keep_state
from monai_attn.handlers.earlier import BEST, FINAL, LATEST, move_aside, stopped_training
from monai_attn.weights.checkpoint import load_weights, unwrapped
from monai_attn.weights.files import read_tensors
from monai_attn.workflow.call import bundle_call
from monai_attn.workflow.processes import gather

__all__ = ["TrainingCheckpoint"]

_PLACE = ("epoch", "max_epochs", "epoch_length")
# entries of a bundle's configuration that do not change what a training gives
_MAY_CHANGE = {
    "amp", "bundle_root", "ckpt_dir", "ckpt_interval", "dataset_dir", "device", "imports", "initialize", "num_workers",
    "output_dir", "resume", "run", "session",
}  # fmt: skip
_logger = logging.getLogger(__name__)


class TrainingCheckpoint:
    """Write what a training needs to go on after every epoch, go on from there, and write the weights at the end.

    ``checkpoint_latest.pt`` holds the network, the optimiser, the schedule, the loss scaler, where the trainer is, the
    best validation and the last one, and the handlers that have a state: :class:`EpochSeed`, :class:`CurveSaver`,
    :class:`EarlyStop`, :class:`BestModelSaver`. With :class:`EpochSeed` a resumed training gives on a CPU bitwise what
    one that ran through gives. ``model_final.pt`` is the network's state dict after the last epoch, and so is
    ``model.pt`` if there was no validation to choose a better one. Of several processes the first one writes, and all
    read.

    It may stand anywhere in the list of handlers. Where another training was stopped before its end, a new one moves
    that one's files to ``previous_1`` (``previous_2``, …) after its first step.

    Args:
        save_dir: folder to write to.
        network: the network, alone or wrapped for several processes.
        optimizer: its optimiser.
        scheduler: the schedule of the learning rate.
        evaluator: the engine of the validation.
        resume: ``"auto"`` to go on from ``checkpoint_latest.pt`` if there is one, the path of a checkpoint to go on
            from, or ``""`` to start anew.
        interval: number of epochs between checkpoints; the last epoch always has one.

    Raises:
        ConfigError: if ``interval`` is below 1; when the training starts, if it is set up in another way than that of
            the checkpoint.
        DataError: when the training starts, if the checkpoint cannot be used; when a file cannot be written.

    Example:
        ``SupervisedTrainer(..., train_handlers=[TrainingCheckpoint("models", network, optimizer, scheduler,
        evaluator, resume="auto")])``
    """

    def __init__(
        self,
        save_dir: str,
        network: nn.Module,
        optimizer: Any,
        scheduler: Any,
        evaluator: Engine,
        *,
        resume: str = "",
        interval: int = 1,
    ) -> None:
        if interval < 1:
            raise ConfigError("ckpt_interval", f"expected 1 or more epochs, got {interval}", "leave it at 1")
        self.save = AtomicSaver(save_dir)
        self.network = network
        self.evaluator = evaluator
        self.resume = "auto" if resume is True else resume  # what `--resume` without a value gives
        self.interval = interval
        self.own_parts = {"optimizer": optimizer, "scheduler": scheduler}
        self.settings: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to one of MONAI's trainers."""
        for name, part in self.own_parts.items():
            keep_state(engine, name, part)
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        self.save.prepare()
        if not engine.has_event_handler(self._checkpoint, Events.EPOCH_COMPLETED):
            # registered as late as this, it comes behind validation, schedule and curves
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._checkpoint)
        self.settings = dict(_settings(engine, self._parts(engine)))
        folder = self.save.save_dir
        if self.resume and (self.resume != "auto" or (folder / LATEST).exists()):
            self._restore(engine, folder / LATEST if self.resume == "auto" else Path(self.resume))
        elif idist.get_rank() == 0 and stopped_training(folder):
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), move_aside, folder)
        if len(epochs := set(gather([engine.state.epoch]))) > 1:
            raise DataError(
                str(folder / LATEST),
                f"the processes would go on after different epochs: {', '.join(map(str, sorted(epochs)))}",
                "give a ckpt_dir on a disk that all machines share",
            )

    def _parts(self, engine: Engine) -> dict[str, Any]:
        states: list[Any] = [engine.state, self.evaluator.state]
        return {name: part for state in states for name, part in getattr(state, "parts", {}).items()}

    def _checkpoint(self, engine: Engine) -> None:
        trainer: Any = engine
        finished = bool(trainer.should_terminate) or trainer.state.epoch == trainer.state.max_epochs
        if idist.get_rank() > 0 or (trainer.state.epoch % self.interval and not finished):
            return
        best: Any = self.evaluator.state
        checkpoint = {
            "model": unwrapped(self.network).state_dict(),
            "scaler": trainer.scaler.state_dict() if trainer.scaler is not None else {},
            "trainer": {name: getattr(trainer.state, name) for name in _PLACE},
            "finished": finished,
            "best": {"metric": float(best.best_metric), "epoch": best.best_metric_epoch},
            "metrics": {name: float(value) for name, value in best.metrics.items() if isinstance(value, (int, float))},
            "parts": {name: part.state_dict() for name, part in self._parts(engine).items()},
            "settings": self.settings,
        }
        self.save(checkpoint, LATEST)

    def _restore(self, engine: Engine, path: Path) -> None:
        trainer: Any = engine
        checkpoint = read_tensors(path)
        if not isinstance(checkpoint, Mapping) or not {"trainer", "parts", "settings"} <= set(checkpoint):
            raise DataError(str(path), "it holds no state of a training", f"give a {LATEST}, or leave out --resume")
        load_weights(self.network, checkpoint, str(path))
        _check_settings(checkpoint["settings"], self.settings, str(path))
        for name, part in self._parts(engine).items():
            part.load_state_dict(checkpoint["parts"][name])
        if trainer.scaler is not None and checkpoint["scaler"]:
            trainer.scaler.load_state_dict(checkpoint["scaler"])
        best: Any = self.evaluator.state
        best.best_metric, best.best_metric_epoch = checkpoint["best"]["metric"], checkpoint["best"]["epoch"]
        best.metrics = dict(checkpoint["metrics"])
        state = trainer.state
        state.epoch = checkpoint["trainer"]["epoch"]
        state.iteration = state.epoch * state.epoch_length
        _logger.info(f"{path}: going on after epoch {state.epoch} of {state.max_epochs}")
        if checkpoint["finished"]:
            engine.terminate()

    def _finish(self, _engine: Engine) -> None:
        weights = unwrapped(self.network).state_dict()
        self.save(weights, FINAL)
        best: Any = self.evaluator.state
        if best.best_metric_epoch < 1:  # no validation, as where a single case is labelled, or none with a number
            self.save(weights, BEST)


def _settings(engine: Engine, parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How a training is set up: the bundle's configuration if there is one, its length, and its parts as they begin."""
    config = bundle_call().parser.get()
    chosen = {key: value for key, value in config.items() if key not in _MAY_CHANGE and not key.startswith("_")}
    yield from ((name, value) for name, value in _leaves(chosen) if "handlers#" not in name)
    yield "number of epochs", str(engine.state.max_epochs)
    yield "iterations of an epoch", str(engine.state.epoch_length)
    if idist.get_world_size() > 1:
        yield "number of processes", str(idist.get_world_size())
    for name, part in parts.items():
        yield name, type(part).__name__
        yield from _leaves(part.state_dict(), f"{name}#")


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The plain values in nested containers, with their names as MONAI writes them."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}{key}#")
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield prefix.removesuffix("#"), str(value)


def _check_settings(then: Mapping[str, str], now: Mapping[str, str], name: str) -> None:
    differing = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if differing:
        shown = "; ".join(f"{key} {then.get(key, '(none)')}, now {now.get(key, '(none)')}" for key in differing[:3])
        raise ConfigError(
            f"--resume {name}",
            f"its training was set up in another way: {shown}{' …' if len(differing) > 3 else ''}",
            "give the same overrides as then, or for a new training leave out --resume",
        )
