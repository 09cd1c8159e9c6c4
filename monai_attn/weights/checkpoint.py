# SPDX-License-Identifier: Apache-2.0
"""Load a checkpoint into a network, completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from monai_attn.errors import DataError
from monai_attn.weights.files import read_tensors

__all__ = ["fill", "load_weights", "read_state_dict", "unwrapped"]


def read_state_dict(source: str | os.PathLike | Mapping[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    """Find the state dict in a checkpoint.

    Args:
        source: the file, or what is in it: a state dict, or a dictionary with it as ``state_dict`` or ``model``.

    Returns:
        what to call the source in an error, and its tensors by name, without the ``module.`` that a wrapper such as
        ``nn.DataParallel`` puts in front.

    Raises:
        DataError: if the file cannot be read (:mod:`monai_attn.weights.files`) or holds no state dict.
    """
    name = "the given checkpoint" if isinstance(source, Mapping) else os.fspath(source)
    checkpoint = source if isinstance(source, Mapping) else read_tensors(source)
    state: Any = checkpoint
    while isinstance(state, Mapping) and isinstance(inner := state.get("state_dict", state.get("model")), Mapping):
        state = inner
    entries = state.items() if isinstance(state, Mapping) else ()
    if not entries or not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in entries):
        found = f"the entries {list(checkpoint)[:4]}" if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise DataError(name, f"expected a state dict of tensors, found {found}", "give a file of weights")
    return name, {key.removeprefix("module."): value for key, value in entries}


def fill(network: nn.Module, theirs: Mapping[str, torch.Tensor], ours: Mapping[str, str], name: str) -> None:
    """Fill a network's state dict, using every tensor of a checkpoint once.

    A checkpoint may lack the batch counters of normalization, which PyTorch has since 0.4.1; they are then 0.

    Args:
        network: the network.
        theirs: the checkpoint's tensors.
        ours: for each entry of the network's state dict the name of the tensor that belongs there.
        name: what the checkpoint is called in an error.

    Raises:
        DataError: if that does not work out; the network is then unchanged.
    """
    state = network.state_dict()
    counters = {other: torch.tensor(0) for mine, other in ours.items() if mine.endswith("num_batches_tracked")}
    theirs = {**counters, **theirs}
    problems = {
        "missing in it": [other for other in ours.values() if other not in theirs],
        "not of this network": [key for key in theirs if key not in ours.values()],
        "of another shape": [
            f"{other} {tuple(theirs[other].shape)}, expected {tuple(state[mine].shape)}"
            for mine, other in ours.items()
            if other in theirs and theirs[other].shape != state[mine].shape
        ],
    }
    text = "; ".join(
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"
        for kind, keys in problems.items()
        if keys
    )
    if text:
        raise DataError(name, text, f"build the {type(network).__name__} with the arguments that it was trained with")
    network.load_state_dict({mine: theirs[other] for mine, other in ours.items()})


def load_weights(network: nn.Module, source: str | os.PathLike | Mapping[str, Any], origin: str | None = None) -> None:
    """Load trained weights into a network, completely or not at all.

    Args:
        network: the network, alone or wrapped for several processes.
        source: the file (``model.pt`` or a checkpoint), or what is in it.
        origin: what to call the source in an error, by default the file.

    Raises:
        DataError: if the file cannot be read, its weights are NaN or infinite, or are those of another network, such as
            one with another number of classes.

    Example:
        ``load_weights(network, "models/model.pt")``
    """
    name, state = read_state_dict(source)
    name = origin or name
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise DataError(name, f"{len(broken)} entries are NaN or infinite: {broken[0]} …", "take an earlier checkpoint")
    network = unwrapped(network)
    fill(network, state, {key: key for key in network.state_dict()}, name)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return the network without its wrapper for several devices or processes."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return network.module if isinstance(network, wrappers) else network
