# SPDX-License-Identifier: Apache-2.0
"""How far the run is, and how well it goes."""

from __future__ import annotations

import sys
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine
from ignite.handlers import ProgressBar
from monai.utils import CommonKeys

__all__ = ["EpochProgressBar", "training_loss"]


def training_loss(output: dict[str, Any]) -> float:
    """Take the loss out of the output of a trainer that does not decollate it (``decollate=False``).

    Not decollating saves time in every iteration; ``monai.handlers.from_engine`` expects the decollated form.

    Example:
        ``StatsHandler(output_transform=training_loss)``
    """
    return float(output[CommonKeys.LOSS].detach())


class EpochProgressBar(ProgressBar):
    """Ignite's progress bar, with the training loss, and silent where there is no terminal (log files, CI).

    Of several processes the first one shows it.

    Args:
        show_loss: whether the engine is a trainer whose loss is to be shown.
        desc: text in front of the bar.

    Example:
        ``SupervisedTrainer(..., train_handlers=[EpochProgressBar()])``
    """

    def __init__(self, show_loss: bool = True, desc: str = "") -> None:
        super().__init__(desc=desc, disable=not sys.stderr.isatty() or idist.get_rank() > 0)
        self.show_loss = show_loss

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Attach to an engine, as MONAI does with its handlers."""
        if self.show_loss:
            kwargs.setdefault("output_transform", lambda output: {"loss": training_loss(output)})
        super().attach(engine, *args, **kwargs)
