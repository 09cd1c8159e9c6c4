# SPDX-License-Identifier: Apache-2.0
"""What the processes of a distributed run do differently. On one process nothing of this does anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence, Sized
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from monai.handlers import StatsHandler, TensorBoardHandler
from torch import nn

from monai_attn.errors import ConfigError

__all__ = ["distribute", "gather", "handlers_of_rank", "join", "local_device", "share"]

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


def local_device() -> torch.device:
    """The device of this process in a distributed run: its own GPU, or the CPU.

    Example:
        ``"device": "$monai_attn.workflow.local_device()"`` in a configuration
    """
    return idist.device()


def distribute(network: nn.Module) -> nn.Module:
    """Wrap a network for a trainer, to average its gradients over the processes of a distributed run.

    Running statistics stay those of the process; :class:`monai_attn.handlers.AverageStatistics` averages them.

    Args:
        network: the network, on the device of this process.

    Example:
        >>> type(distribute(torch.nn.Linear(1, 1))).__name__
        'Linear'
    """
    if idist.get_world_size() == 1:
        return network
    device = idist.device()
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(network, device_ids=ids, broadcast_buffers=False)


def handlers_of_rank(handlers: Sequence[Any]) -> list[Any]:
    """The handlers that this process of a distributed run needs: all for the first, none that only report elsewhere.

    Example:
        >>> [type(handler).__name__ for handler in handlers_of_rank([StatsHandler()])]
        ['StatsHandler']
    """
    reporters = (StatsHandler, TensorBoardHandler)
    return [handler for handler in handlers if idist.get_rank() == 0 or not isinstance(handler, reporters)]


def share(items: Sized, least: int = 0) -> range:
    """The indices of the items that this process of a distributed run works on. Every item is in one share.

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
    """The items of all processes of a distributed run, in the order of the processes."""
    if idist.get_world_size() == 1:
        return list(items)
    parts: list[Any] = [None] * idist.get_world_size()
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]
