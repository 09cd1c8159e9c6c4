# SPDX-License-Identifier: Apache-2.0
"""Handlers for trainers: seeds, loss terms, progress, NaN checks."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Average
from ignite.utils import manual_seed
from monai.data import MetaTensor
from monai.data.utils import set_rnd
from monai.engines import IterationEvents
from monai.handlers import from_engine
from monai.utils import CommonKeys, ImageMetaKey, ensure_tuple
from torch import nn
from tqdm import tqdm

from monai_attn.data.datalist import case_name
from monai_attn.errors import DataError
from monai_attn.handlers.metrics import by_structure

__all__ = ["AverageStatistics", "EpochProgressBar", "EpochSeed", "LossTerms", "StopOnNonFinite"]


class EpochSeed:
    """Seed all random number generators at every epoch's start.

    Augmentation, shuffling and dropout are then the same in a resumed training as in an uninterrupted one. Each process
    and each worker draws its own numbers, so another ``num_workers`` gives other weights. Persistent workers are not
    seeded.

    Example:
        ``SupervisedTrainer(..., train_handlers=[EpochSeed(0)])``
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        state: Any = engine.state
        state.seed = self.seed
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed Python, NumPy, PyTorch and MONAI's random transforms."""
        trainer: Any = engine
        entropy = np.random.SeedSequence([self.seed, trainer.state.epoch, idist.get_rank()])
        seed = int(entropy.generate_state(1)[0])
        manual_seed(seed)
        set_rnd(getattr(trainer.data_loader, "dataset", None), seed)


_FIX = (
    "look for NaN and for wrong intensities in the data, or lower the learning rate; the weights in ckpt_dir are those "
    "of the epochs before"
)


class StopOnNonFinite:
    """Stop training when the loss is NaN or infinite.

    The loss is checked before it reaches the weights, the weights before they are validated or saved. Steps that mixed
    precision skips do not count.

    Example:
        ``SupervisedTrainer(..., train_handlers=[StopOnNonFinite()])``
    """

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check_loss)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.check_weights)

    def check_loss(self, engine: Engine) -> None:
        """Check the loss of a batch.

        Raises:
            DataError: if it is not finite, with the names of the cases.
        """
        state: Any = engine.state
        loss = state.output[CommonKeys.LOSS].detach()
        if not loss.isfinite():
            place = f"iteration {state.iteration} (epoch {state.epoch})"
            raise DataError(_cases(state.batch), f"their loss is {float(loss)} in {place}", _FIX)

    def check_weights(self, engine: Engine) -> None:
        """Check the weights after the last iteration of an epoch.

        Raises:
            DataError: if they are not all finite.
        """
        trainer: Any = engine
        state = trainer.state
        if state.iteration % state.epoch_length:
            return
        finite = [value.isfinite().all() for value in trainer.network.state_dict().values()]
        if not torch.stack(finite).all():
            raise DataError("the network", f"its weights are NaN or infinite after epoch {state.epoch}", _FIX)


def _cases(batch: Any) -> str:
    image = batch.get(CommonKeys.IMAGE) if isinstance(batch, dict) else None
    files = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(image, MetaTensor) else None
    names = dict.fromkeys(case_name(str(file)) for file in ensure_tuple(files or ()))
    return f"the cases {', '.join(names)}" if names else "the batch"


class AverageStatistics:
    """Average batch norm statistics over the processes of a training.

    All processes then validate and save the same network, which must not be wrapped, after each epoch.

    Example:
        ``SupervisedTrainer(..., train_handlers=[AverageStatistics(network)])``
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer, at any position among its handlers."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Average after the last iteration of an epoch."""
        state: Any = engine.state
        statistics = [
            value for name, value in self.network.named_buffers() if name.endswith(("running_mean", "running_var"))
        ]
        processes = idist.get_world_size()
        if processes == 1 or not statistics or state.iteration % state.epoch_length:
            return
        total = torch.as_tensor(idist.all_reduce(torch.cat([value.flatten() for value in statistics])))
        for value, mean in zip(statistics, (total / processes).split([value.numel() for value in statistics])):
            value.copy_(mean.view_as(value))


class LossTerms:
    """Add the mean of each loss term to the metrics.

    ``loss_<term>``, over all processes, is set from the last iteration of an epoch until the next epoch, for
    ``StatsHandler``, ``TensorBoardStatsHandler`` and :class:`CurveSaver` at any position. The loss must have a
    dictionary ``terms`` of the scalar terms of its last call, as :class:`monai_attn.losses.EGCNNLoss` and
    :class:`monai_attn.losses.EdgeLoss` have.

    Raises:
        TypeError: if the loss has no such attribute.

    Example:
        ``SupervisedTrainer(..., loss_function=loss, train_handlers=[LossTerms(loss), StatsHandler()])``
    """

    def __init__(self, loss: Any) -> None:
        if not isinstance(getattr(loss, "terms", None), dict):
            raise TypeError(f"loss must have a dictionary `terms`, as EGCNNLoss has; {type(loss).__name__} has none.")
        self.loss = loss
        self.means: dict[str, Average] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._update)

    def _reset(self, engine: Engine) -> None:
        for name in self.means:
            engine.state.metrics.pop(name, None)
        self.means = {}

    def _update(self, engine: Engine) -> None:
        for name, term in self.loss.terms.items():
            self.means.setdefault(f"loss_{name}", Average()).update(term)
        state: Any = engine.state
        if state.iteration % state.epoch_length == 0:
            state.metrics.update({name: float(mean.compute()) for name, mean in self.means.items()})


class EpochProgressBar:
    """Show the progress of a run as a bar or lines.

    On a terminal there is one bar for the whole run, with the loss, the remaining time and the last scores, and one for
    each validation. Elsewhere there is a line per epoch of a training, which is also in the log file.

    Args:
        show_loss: whether the engine is a trainer.
        desc: name of the bar, by default the epoch.
        evaluator: the engine of the validations.
        structures: names of the structures in its key metric.

    Example:
        ``SupervisedTrainer(..., train_handlers=[EpochProgressBar(evaluator=evaluator, structures=["liver"])])``
    """

    def __init__(
        self, show_loss: bool = True, desc: str = "", evaluator: Engine | None = None, structures: Sequence[str] = ()
    ) -> None:
        self.show_loss = show_loss
        self.desc = desc
        self.evaluator = evaluator
        self.structures = structures
        self.bar: Any = None

    def attach(self, engine: Engine) -> None:
        """Attach to an engine, and to the evaluator."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end)
        if self.evaluator is not None:
            EpochProgressBar(show_loss=False, desc="validation").attach(self.evaluator)

    def _begin(self, engine: Engine) -> None:
        state: Any = engine.state
        self.begun, self.total, self.count = time.perf_counter(), 0.0, 0
        if self.bar is None:
            total = state.epoch_length * (state.max_epochs if self.show_loss else 1)
            hidden = not sys.stderr.isatty() or idist.get_rank() > 0
            own = {"leave": self.desc != "validation", "dynamic_ncols": True, "disable": hidden}
            self.bar = tqdm(total=total, initial=state.iteration, **own)
        self.bar.set_description(f"epoch {state.epoch}/{state.max_epochs}" if self.show_loss else self.desc or "cases")

    def _advance(self, engine: Engine) -> None:
        if self.show_loss:
            loss = ensure_tuple(from_engine(CommonKeys.LOSS, first=True)(engine.state.output))[0]
            self.total, self.count = self.total + float(loss), self.count + 1
            if not self.bar.disable:
                self.bar.set_postfix_str(self._text(), refresh=False)
        self.bar.update()

    def _text(self, epoch: int = 0) -> str:
        """Return the loss so far and the last scores, or those of an epoch only."""
        values = {"loss": self.total / self.count}
        state: Any = getattr(self.evaluator, "state", None)
        if state is not None and state.metrics and epoch in (0, state.epoch):
            name = state.key_metric_name
            details = getattr(state, "metric_details", {}).get(name)  # not there in a training that was just resumed
            values |= {name: state.metrics[name], **({} if details is None else by_structure(details, self.structures))}
        return ", ".join(f"{name} {value:.4g}" for name, value in values.items())

    def _end(self, engine: Engine) -> None:
        state: Any = engine.state
        if self.show_loss:
            self.bar.set_postfix_str("" if self.bar.disable else self._text())
            seconds = time.perf_counter() - self.begun
            logging.getLogger("monai_attn.progress").log(
                logging.INFO if self.bar.disable else logging.DEBUG,  # a terminal has the bar
                f"epoch {state.epoch}/{state.max_epochs}: {self._text(state.epoch)}, {seconds:.1f} s",
            )
        if state.epoch == state.max_epochs:  # before the run is summed up
            self.bar = self.bar.close()
