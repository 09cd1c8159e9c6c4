# SPDX-License-Identifier: Apache-2.0
"""Share the work among the processes of a distributed run; on one process nothing of this does anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence, Sized
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
from monai.handlers import StatsHandler, TensorBoardHandler

from monai_attn.errors import ConfigError

__all__ = ["gather", "handlers_of_rank", "join", "share"]

# a process waits for the others as long as their cases take; the launcher sees to those that have died
_PATIENCE = timedelta(days=1)


def join() -> None:
    """Join the other processes that ``torchrun`` started, if it did: by NCCL on GPUs, else by Gloo.

    Raises:
        ConfigError: if the machine has GPUs, but not one for each of its processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return
    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if 0 < gpus < processes:
        raise ConfigError(
            f"--nproc_per_node={processes}",
            f"every process needs a GPU of its own, and there are {gpus}",
            f"give {gpus}, or set CUDA_VISIBLE_DEVICES= to run on the CPU",
        )
    hook = sys.excepthook
    idist.initialize("nccl" if gpus else "gloo", timeout=_PATIENCE)
    sys.excepthook = hook  # torch puts one in front that loses what a hook prints before it chooses the exit code


def handlers_of_rank(handlers: Sequence[Any]) -> list[Any]:
    """Return the handlers that this process needs: all for the first, none that only report elsewhere.

    Example:
        >>> [type(handler).__name__ for handler in handlers_of_rank([StatsHandler()])]
        ['StatsHandler']
    """
    reporters = (StatsHandler, TensorBoardHandler)
    return [handler for handler in handlers if idist.get_rank() == 0 or not isinstance(handler, reporters)]


def share(items: Sized, least: int = 0) -> range:
    """Return the indices of the items that this process works on; every item is in one share.

    The shares follow one another, so what is gathered from the processes in their order is in that of the items.

    Args:
        items: the items, of which every process has the same list.
        least: number of items that every process must have, such as 1 for a metric over the processes.

    Raises:
        ConfigError: if there are too few items.

    Example:
        >>> share(["a", "b", "c"])
        range(0, 3)
    """
    processes, rank = idist.get_world_size(), idist.get_rank()
    if len(items) < least * processes:
        raise ConfigError(
            f"{processes} processes", f"there are only {len(items)} cases for them", "start fewer processes"
        )
    return range(len(items) * rank // processes, len(items) * (rank + 1) // processes)


def gather(items: Sequence[Any]) -> list[Any]:
    """Return the items of all processes, in the order of the processes.

    Example:
        >>> gather([1, 2])
        [1, 2]
    """
    parts: Any = idist.all_gather(list(items))
    return [item for part in parts for item in part]
