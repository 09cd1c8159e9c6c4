# SPDX-License-Identifier: Apache-2.0
"""Losses and metrics for TensorBoard, in a file that is there only if something is in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import TensorBoardStatsHandler
from monai.utils import optional_import

__all__ = ["TensorBoardStats"]

SummaryWriter, _ = optional_import("torch.utils.tensorboard", name="SummaryWriter")


class TensorBoardStats(TensorBoardStatsHandler):
    """MONAI's ``TensorBoardStatsHandler``, which opens its file when the engine starts.

    MONAI's opens it when it is made, so that every process of a distributed run, and whoever only looks at a
    configuration, leaves an empty one.

    Args:
        log_dir: folder for the file.
        iteration_log: whether to write the output of every iteration, besides the metrics of every epoch.
        tag_name: name of the output.
        output_transform: gives a number from ``engine.state.output``.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[TensorBoardStats("out", iteration_log=False)])``
    """

    def __init__(
        self,
        log_dir: str | os.PathLike,
        *,
        iteration_log: bool = True,
        tag_name: str = "Loss",
        output_transform: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        # the writer is a placeholder for the one to come
        super().__init__(object(), iteration_log=iteration_log, tag_name=tag_name, output_transform=output_transform)
        self.log_dir = log_dir

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or an evaluator."""
        engine.add_event_handler(Events.STARTED, self._open)
        super().attach(engine)

    def _open(self, _engine: Engine) -> None:
        if not self.internal_writer:
            self._writer = SummaryWriter(log_dir=os.fspath(self.log_dir))
            self.internal_writer = True
