# SPDX-License-Identifier: Apache-2.0
"""PyTorch checkpoints of other code: read without unpickling code, and put into a network completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from monai_attn.errors import DataError

__all__ = ["fill", "read_state_dict"]

_read_tensors = partial(torch.load, map_location="cpu", weights_only=True)


def read_state_dict(
    source: str | os.PathLike | Mapping[str, Any], read: Callable[[str | os.PathLike], Any] = _read_tensors
) -> tuple[str, dict[str, torch.Tensor]]:
    """Read a checkpoint file, or take one that is read already.

    Args:
        source: the file, or the checkpoint or its ``state_dict`` as a dictionary.
        read: reads a checkpoint from a file.

    Returns:
        what to call the source in an error, and its tensors by name, without the ``module.`` that a wrapper such as
        ``nn.DataParallel`` puts in front.

    Raises:
        DataError: if the file is not there, holds other things than tensors, or no state dict.
    """
    name = "the given checkpoint" if isinstance(source, Mapping) else os.fspath(source)
    checkpoint: Any = source
    if not isinstance(source, Mapping):
        try:
            checkpoint = read(source)
        except DataError:
            raise
        except FileNotFoundError as error:
            raise DataError(name, "there is no such file", "correct the path") from error
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise DataError(
                name,
                f"it is no file of plain tensors that torch.load(weights_only=True) reads ({type(error).__name__}: "
                f"{first})",
                "download it again, or where you trust it, load it yourself and save its state_dict by torch.save",
            ) from error
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(map(_is_entry, state.items())):
        found = f"the entries {list(checkpoint)[:4]}" if isinstance(checkpoint, Mapping) else type(checkpoint).__name__
        raise DataError(name, f"expected a state dict of tensors, found {found}", "give the authors' checkpoint")
    return name, {key.removeprefix("module."): value for key, value in state.items()}


def _is_entry(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)


def fill(network: nn.Module, theirs: Mapping[str, torch.Tensor], ours: Mapping[str, str], name: str) -> None:
    """Fill every entry of a network's state dict, using every tensor of a checkpoint once.

    A checkpoint may lack the batch counters of normalisation, which PyTorch has since 0.4.1; they are then 0.

    Args:
        network: the network.
        theirs: the checkpoint's tensors.
        ours: for each entry of the network's state dict the name of the tensor that belongs there.
        name: what the checkpoint is called in an error.

    Raises:
        DataError: if that does not work out.
    """
    state = network.state_dict()
    used = list(ours.values())
    theirs = {key: torch.tensor(0) for key in used if key.endswith("num_batches_tracked")} | dict(theirs)
    problems = {
        "missing in it": [other for mine, other in ours.items() if mine in state and other not in theirs],
        "not of this network": [key for key in theirs if key not in used],
        "used twice": sorted({key for key in used if used.count(key) > 1}),
        "without a source": [key for key in state if key not in ours],
        "of another shape": [
            f"{other} {tuple(theirs[other].shape)}, expected {tuple(state[mine].shape)}"
            for mine, other in ours.items()
            if mine in state and other in theirs and theirs[other].shape != state[mine].shape
        ],
        "not in this network": [mine for mine in ours if mine not in state],
    }
    text = "; ".join(
        f"{len(keys)} {kind}: {', '.join(keys[:3])}{' …' if len(keys) > 3 else ''}"
        for kind, keys in problems.items()
        if keys
    )
    if text:
        raise DataError(
            name, text, f"build the {type(network).__name__} with the arguments that the file was made with"
        )
    network.load_state_dict({mine: theirs[other] for mine, other in ours.items()})
