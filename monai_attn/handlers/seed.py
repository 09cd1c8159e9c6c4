# SPDX-License-Identifier: Apache-2.0
"""Random numbers that depend on nothing but seed, epoch and process."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events
from ignite.utils import manual_seed
from monai.data.utils import set_rnd

from monai_attn.handlers.checkpoint import keep_state

__all__ = ["EpochSeed"]


class EpochSeed:
    """Seed every source of random numbers anew when an epoch of a training starts.

    An epoch then draws the same augmentations, order of cases, dropout and noise whether the training ran through or
    was resumed before it, and every process of a distributed training draws its own. Ignite makes the iterator of the
    data loader behind this event, so workers are seeded too, except persistent ones.

    Args:
        seed: the seed of the training.

    Example:
        ``SupervisedTrainer(..., train_handlers=[EpochSeed(0)])``
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Attach to one of MONAI's trainers."""
        keep_state(engine, "seed", self)
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed Python, NumPy, PyTorch and MONAI's random transforms."""
        trainer: Any = engine
        entropy = np.random.SeedSequence([self.seed, trainer.state.epoch, idist.get_rank()])
        seed = int(entropy.generate_state(1)[0])
        manual_seed(seed)
        set_rnd(getattr(trainer.data_loader, "dataset", None), seed)

    def state_dict(self) -> dict[str, int]:
        """The seed, with which a training must be resumed."""
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take the seed of a training that goes on."""
        self.seed = state_dict["seed"]
