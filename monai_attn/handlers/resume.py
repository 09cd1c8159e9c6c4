# SPDX-License-Identifier: Apache-2.0
"""Save training checkpoints and resume from them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint

from monai_attn.errors import ConfigError, DataError
from monai_attn.handlers.checkpoint import BEST, DESCRIPTION, AtomicSaver, BestModelSaver
from monai_attn.handlers.settings import describe, differences
from monai_attn.weights.checkpoint import load_weights, read_tensors, unwrapped

__all__ = ["FINAL", "LATEST", "TrainingCheckpoint", "resumed"]

FINAL, LATEST = "model_final.pt", "checkpoint_latest.pt"
_ENDS = ("T_max", "total_iters", "total_steps", "t_total")  # of schedules that know the last epoch
_logger = logging.getLogger(__name__)


class TrainingCheckpoint(Checkpoint):
    """Save a checkpoint after every epoch and resume from it.

    ``checkpoint_latest.pt`` holds ``to_save``, the epoch, the loss scaler, the best and the last validation, and the
    states of handlers (:func:`keep_state`). With :class:`EpochSeed`, a resumed training on a CPU is bitwise equal to an
    uninterrupted one. ``model_final.pt`` is the network's state dict after the last epoch, as is ``model.pt`` without a
    validation. The first process writes, all processes read. Files of another training that was stopped early are moved
    to ``previous_1``, ``previous_2``, … after the first step. The position in the list of handlers does not matter.

    Args:
        save_dir, interval: folder, and number of epochs between checkpoints; the last epoch always has one.
        to_save: the network as ``model``, and whatever else has a state, such as ``optimizer`` and ``lr_scheduler``.
        evaluator: the engine of the validation.
        resume: ``"auto"`` to resume from ``checkpoint_latest.pt`` if it exists, the path of a checkpoint, or ``""``.
            The number of epochs may be increased, unless the learning rate schedule ends with them.

    Raises:
        ConfigError: if ``interval`` is below 1; at the start, if the checkpoint's training had other settings.
        DataError: at the start, if the checkpoint cannot be used; when a file cannot be written.

    Example:
        ``SupervisedTrainer(..., train_handlers=[TrainingCheckpoint("models", {"model": network}, evaluator)])``
    """

    def __init__(
        self, save_dir: str, to_save: Mapping[str, Any], evaluator: Engine, *, resume: str = "", interval: int = 1
    ) -> None:
        if interval < 1:
            raise ConfigError("ckpt_interval", f"expected 1 or more epochs, got {interval}", "leave it at 1")
        self.saver = AtomicSaver(save_dir)
        super().__init__(dict(to_save), self.saver, filename_pattern=LATEST)
        self.network = unwrapped(to_save["model"])
        self.evaluator = evaluator
        self.resume = resume
        self.interval = interval

    def attach(self, engine: Engine) -> None:
        """Attach to one of MONAI's trainers."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        trainer: Any = engine
        self.saver.prepare()
        self.load_state_dict({"_saved": []})  # ignite would compare epochs with those of an earlier run
        states: list[Any] = [trainer.state, self.evaluator.state]
        parts = {**self.to_save, **{k: v for state in states for k, v in getattr(state, "to_save", {}).items()}}
        if trainer.scaler is not None:
            parts["scaler"] = trainer.scaler
        self.progress = _Progress(trainer, self.evaluator, dict(_settings(trainer, parts)))
        self.to_save = {**parts, "trainer": self.progress}
        if not engine.has_event_handler(self._save, Events.EPOCH_COMPLETED):
            # registered as late as this, it comes behind validation, schedule and curves
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)
        folder = self.saver.save_dir
        if (path := resumed(self.resume, folder)) is not None:
            self._restore(path)
        is_new = path is None or path.parent.resolve() != folder.resolve()
        if is_new and idist.get_rank() == 0 and _stopped_training(folder):
            first = engine.state.iteration + 1
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=first), _move_aside, folder)
        gathered: Any = idist.all_gather([engine.state.epoch])
        if len(epochs := {epoch for (epoch,) in gathered}) > 1:
            problem = f"the processes would go on after different epochs: {', '.join(map(str, sorted(epochs)))}"
            raise DataError(str(folder / LATEST), problem, "give a ckpt_dir on a disk that all machines share")

    def _save(self, engine: Engine) -> None:
        if engine.state.epoch % self.interval == 0 or self.progress.finished:
            self(engine)

    def _restore(self, path: Path) -> None:
        checkpoint = read_tensors(path)
        if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("trainer"), Mapping):
            raise DataError(str(path), "it holds no state of a training", f"give a {LATEST}, or leave out --resume")
        if "settings" not in checkpoint["trainer"]:
            fix = "finish it with that one, or start anew"
            raise DataError(str(path), "another version of monai_attn wrote it", fix)
        load_weights(self.network, checkpoint, str(path))
        then, now = checkpoint["trainer"]["settings"], self.progress.settings
        longer = {**then, "epochs": now["epochs"]} if int(now["epochs"]) > int(then["epochs"]) else then
        ends = any(key.startswith("lr_scheduler") and key.endswith(_ENDS) for key in then)
        if different := differences(then if ends else longer, now):
            fix = "give the same overrides as then, or for a new training leave out --resume"
            if longer is not then and ends:
                fix = f"its learning rate has ended with its epochs; fine-tune with --pretrained {path.with_name(BEST)}"
            raise ConfigError(f"--resume {path}", f"its training was set up in another way: {different}", fix)
        for name, part in self.to_save.items():
            if name != "model" and name in checkpoint:  # a scaler is there with mixed precision only
                part.load_state_dict(checkpoint[name])

    def _finish(self, _engine: Engine) -> None:
        weights = self.network.state_dict()
        self.saver(weights, FINAL)
        best: Any = self.evaluator.state
        if best.best_metric_epoch < 1:  # no validation, as where a single case is labeled, or none with a number
            self.saver(weights, BEST)
            if isinstance(saver := self.to_save.get("best_model"), BestModelSaver):
                saver.describe()


class _Progress:
    def __init__(self, trainer: Any, evaluator: Any, settings: dict[str, str]) -> None:
        self.trainer, self.evaluator, self.settings = trainer, evaluator, settings

    @property
    def finished(self) -> bool:
        return bool(self.trainer.should_terminate) or self.trainer.state.epoch == self.trainer.state.max_epochs

    def state_dict(self) -> dict[str, Any]:
        state, best = self.trainer.state, self.evaluator.state
        return {
            "epoch": state.epoch,
            "max_epochs": state.max_epochs,
            "finished": self.finished,
            "best_metric": float(best.best_metric),
            "best_metric_epoch": best.best_metric_epoch,
            "metrics": {name: float(value) for name, value in best.metrics.items() if isinstance(value, (int, float))},
            "settings": self.settings,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        state, best = self.trainer.state, self.evaluator.state
        state.epoch = state_dict["epoch"]
        state.iteration = state.epoch * state.epoch_length
        best.best_metric, best.best_metric_epoch = state_dict["best_metric"], state_dict["best_metric_epoch"]
        best.metrics = dict(state_dict["metrics"])
        _logger.info(f"resuming after epoch {state.epoch} of {state.max_epochs}")
        stopped_early = state.epoch < state_dict["max_epochs"]
        if state_dict["finished"] and (stopped_early or state.epoch >= state.max_epochs):
            self.trainer.terminate()


def resumed(resume: str | bool, save_dir: str | Path) -> Path | None:
    """Return the checkpoint that a training resumes from, if any."""
    if resume in ("auto", True):  # what `--resume` without a value gives
        return path if (path := Path(save_dir) / LATEST).exists() else None
    return Path(str(resume)) if resume else None


def _settings(trainer: Any, parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the settings that the trained weights depend on."""
    state, loader = trainer.state, trainer.data_loader
    known = {
        "epochs": state.max_epochs,
        "iterations of an epoch": state.epoch_length,
        "seed": getattr(state, "seed", None),
        "processes": idist.get_world_size(),
        "batch_size": getattr(loader, "batch_size", None),
        "num_workers": getattr(loader, "num_workers", None),  # each worker draws its own random numbers
    }
    yield from ((name, str(value)) for name, value in known.items())
    yield from describe(unwrapped(parts["model"]), "network").items()
    yield from describe(trainer.loss_function, "loss").items()
    yield from describe(getattr(getattr(loader, "dataset", None), "transform", None), "transform").items()
    for name, part in parts.items():
        if name not in ("model", "scaler"):
            yield name, type(part).__name__
            yield from _leaves(part.state_dict(), name)


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield the plain values, not the tensors, of nested containers."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{name}.{key}")
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield name, str(value)


def _stopped_training(save_dir: Path) -> bool:
    """Find an unfinished training; warn of files to be replaced."""
    latest = save_dir / LATEST
    if latest.exists():
        try:
            earlier = read_tensors(latest)["trainer"]
            finished, progress = earlier["finished"], "{epoch} of {max_epochs}".format(**earlier)
        except (DataError, KeyError, TypeError):
            finished, progress = False, "that cannot be read"
        if not finished:
            _logger.warning(
                f"{latest} is of a training that was stopped after epoch {progress}; --resume auto goes on with it. "
                f"This new training moves its files to {_free_folder(save_dir)} after its first step."
            )
            return True
    replaced = [name for name in (BEST, FINAL) if (save_dir / name).exists()]
    if replaced:
        _logger.warning(
            f"this training will replace {' and '.join(replaced)} in {save_dir}; to keep them, give another ckpt_dir."
        )
    return False


def _move_aside(save_dir: Path) -> None:
    """Move an unfinished training's files to ``previous_<number>``.

    ``model.pt`` also stays until the new training replaces it, because a server may be using it.
    """
    folder = _free_folder(save_dir)
    folder.mkdir()
    for path in filter(Path.exists, (save_dir / BEST, save_dir / DESCRIPTION)):
        try:
            (folder / path.name).hardlink_to(path)
        except OSError:  # a file system without links
            shutil.copy2(path, folder / path.name)
    for name in (LATEST, FINAL):
        if (save_dir / name).exists():
            (save_dir / name).replace(folder / name)


def _free_folder(save_dir: Path) -> Path:
    return next(folder for n in count(1) if not (folder := save_dir / f"previous_{n}").exists())
