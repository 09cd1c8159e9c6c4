# SPDX-License-Identifier: Apache-2.0
"""The same running statistics on all processes of a distributed training."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch import nn

__all__ = ["AverageStatistics"]


class AverageStatistics:
    """Average the running means and variances of batch normalisation over the processes when an epoch ends.

    Each process has those of its own cases during the epoch. With their mean, what is validated and saved behind the
    epoch knows the cases of all processes, and all processes validate the same network.

    Args:
        network: the network, not wrapped.

    Example:
        ``SupervisedTrainer(..., train_handlers=[AverageStatistics(network)])``
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer; it works before the handlers of the epoch's end, wherever it stands in the list."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Average, behind the last iteration of an epoch."""
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
