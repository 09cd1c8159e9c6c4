# SPDX-License-Identifier: Apache-2.0
"""What the processes of a distributed run do differently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from ignite.handlers import ProgressBar
from monai.handlers import StatsHandler, TensorBoardHandler

__all__ = ["distribute", "gather", "handlers_of_rank", "local_device"]


def local_device() -> torch.device:
    """The device of this process in a distributed run: its own GPU, or the CPU."""
    return idist.device()


def distribute(network: torch.nn.Module) -> torch.nn.Module:
    """Move a network to this process's device and, in a distributed run, average its gradients over the processes."""
    return idist.auto_model(network)


def handlers_of_rank(handlers: Sequence[Any]) -> list[Any]:
    """The handlers that this process of a distributed run needs: all for the first, none that only report elsewhere."""
    reporters = (StatsHandler, TensorBoardHandler, ProgressBar)
    return [handler for handler in handlers if idist.get_rank() == 0 or not isinstance(handler, reporters)]


def gather(items: Sequence[Any]) -> list[Any]:
    """The items of all processes of a distributed run, in the order of the processes."""
    if idist.get_world_size() == 1:
        return list(items)
    parts: list[Any] = [None] * idist.get_world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]
