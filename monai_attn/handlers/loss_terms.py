# SPDX-License-Identifier: Apache-2.0
"""The terms of a loss, each by itself."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.engines import IterationEvents

__all__ = ["LossTerms"]


class LossTerms:
    """Put the mean of each term of a loss over an epoch into a trainer's metrics, as ``loss_<term>``.

    ``StatsHandler``, :class:`monai_attn.handlers.TensorBoardStats` and :class:`monai_attn.handlers.CurveSaver` then
    show them, one value for each epoch and wherever they stand in the list of handlers: the means are there from the
    last iteration of an epoch until the next epoch starts. The terms stay on their device until then, so that nothing
    waits for it. On several processes the mean is that of all of them.

    Args:
        loss: a loss with an attribute ``terms``, a dictionary of the scalar terms of its last call, such as
            :class:`monai_attn.losses.EGCNNLoss` or :class:`monai_attn.losses.EdgeLoss`.

    Raises:
        TypeError: if the loss has no such attribute.

    Example:
        ``SupervisedTrainer(..., loss_function=loss, train_handlers=[LossTerms(loss), StatsHandler()])``
    """

    def __init__(self, loss: Any) -> None:
        if not isinstance(getattr(loss, "terms", None), dict):
            raise TypeError(f"loss must have a dictionary `terms`, as EGCNNLoss has; {type(loss).__name__} has none.")
        self.loss = loss
        self.totals: dict[str, torch.Tensor] = {}
        self.count = 0

    def attach(self, engine: Engine) -> None:
        """Attach to one of MONAI's trainers."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._reset)
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._update)

    def _reset(self, engine: Engine) -> None:
        for name in self.totals:
            engine.state.metrics.pop(f"loss_{name}", None)
        self.totals, self.count = {}, 0

    def _update(self, engine: Engine) -> None:
        for name, term in self.loss.terms.items():
            self.totals[name] = self.totals.get(name, 0.0) + term
        self.count += 1
        state: Any = engine.state
        if self.totals and state.iteration % state.epoch_length == 0:
            state.metrics.update(self._means())

    def _means(self) -> dict[str, float]:
        totals = torch.stack(list(self.totals.values()))
        reduced: Any = idist.all_reduce(torch.cat([totals, totals.new_tensor([self.count])]))
        *sums, count = reduced.tolist()
        return {f"loss_{name}": total / count for name, total in zip(self.totals, sums)}
