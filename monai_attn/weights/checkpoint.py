# SPDX-License-Identifier: Apache-2.0
"""Read PyTorch files safely, and load weights all or nothing."""

from __future__ import annotations

import logging
import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves  # there is no public name

from monai_attn.errors import DataError
from monai_attn.files import check_content, first_of

__all__ = ["check_whole", "fill", "load_weights", "read_state_dict", "read_tensors", "unwrapped"]


State = Mapping[str, torch.Tensor]
_logger = logging.getLogger(__name__)
_FOLDER = 0x10  # in the attributes of an entry of a zip archive
_SCALAR = np.float64(0).__reduce__()[0]  # what reads a pickled number, without a public name
_DTYPES = [type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]]
# NumPy's numbers, such as the rate of a schedule or a best score, run no code; the second name is that before NumPy 2
_NUMBERS = [np.dtype, _SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), *_DTYPES]
_AGAIN = "copy or download it again"
_EXPORTED = "give model.pt, or run it by --network_def \"$torch.jit.load('FILE')\" as docs/export.md shows"


def read_tensors(path: str | os.PathLike) -> Any:
    """Load tensors that ``torch.save`` wrote, to the CPU.

    The file's checksums are verified first, as PyTorch does not.

    Raises:
        DataError: if the file is missing, empty, a pointer of Git LFS, damaged or truncated, or if it holds other
            things than tensors in plain containers, such as a whole network; no code of it runs. Also if a tensor is
            larger than its values in the file.

    Example:
        ``read_tensors("model.pt")["classifier.weight"]``
    """
    name = os.fspath(path)
    if any("/code/" in entry for entry in check_whole(name)):
        raise DataError(name, "it is a network in TorchScript", _EXPORTED)
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
    else:
        if not all(_is_stored(value) for value in tree_leaves(content) if isinstance(value, torch.Tensor)):
            raise DataError(name, "it has a tensor that is larger than what it stores, or not dense", _AGAIN)
        return content
    # torch's own error is left out, for it advises to read such files without this protection
    if found:
        problem = f"it holds the Python object {found[1]}, which could run code; expected is a state dict, as "
        problem += "torch.load(weights_only=True) reads it"
        fix = "ask its author for the state_dict alone, or convert it in a container as docs/scse.md shows"
        raise DataError(name, problem, fix)
    raise DataError(name, "it is no file of plain tensors that torch.load(weights_only=True) reads", _AGAIN)


def _is_stored(value: torch.Tensor) -> bool:
    """Return whether all values of a tensor are there, so that working with it needs no more memory than the file."""
    is_dense = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
    return is_dense and value.ndim <= 64 and value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def check_whole(path: str | os.PathLike) -> list[str]:
    """Check a PyTorch file for damage; return its zip entries.

    Raises:
        DataError: if it is missing, empty, a pointer of Git LFS, damaged or truncated.
    """
    name = os.fspath(path)
    if not Path(name).is_file():
        raise DataError(name, "there is no such file", "correct the path, train first, or get the published weights")
    if not check_content(name).startswith(b"PK"):
        return []
    try:
        with zipfile.ZipFile(name) as archive:
            # PyTorch skips an entry that is marked as a folder and returns what is in memory
            folders = [entry.filename for entry in archive.infolist() if entry.external_attr & _FOLDER]
            damaged = folders[0] if folders else archive.testzip()
    except Exception as error:  # whatever nonsense the archive's tables may say
        raise DataError(name, f"it is damaged or cut off ({type(error).__name__}: {error})", _AGAIN) from error
    if damaged:
        raise DataError(name, f"it is damaged: {damaged} is not what was written", _AGAIN)
    return archive.namelist()


def read_state_dict(source: str | os.PathLike | Mapping[str, Any]) -> tuple[str, dict[str, torch.Tensor]]:
    """Return a checkpoint's name for errors, and its state dict.

    Args:
        source: the file, or its content: a state dict, or a dictionary with it as ``state_dict`` or ``model``. The
            prefix ``module.`` of a wrapper such as ``nn.DataParallel`` is removed.

    Raises:
        DataError: if the file cannot be read or holds no state dict.
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
    return name, {key.removeprefix("module.").removeprefix("_orig_mod."): value for key, value in entries}


def fill(network: nn.Module, theirs: State, ours: Mapping[str, str], name: str, least: float | None = None) -> None:
    """Fill a state dict, by default with every checkpoint tensor once.

    A checkpoint may lack ``num_batches_tracked``, as before PyTorch 0.4.1; it is then 0.

    Args:
        network: the network.
        theirs: the checkpoint's tensors.
        ours: for each entry of the network's state dict the name of the tensor that belongs there.
        name: the checkpoint's name in errors.
        least: fraction of the values that must fit (at least one tensor), while others stay as they are.

    Raises:
        DataError: if entries are missing, left over, or of another shape, or less than ``least`` or nothing fits; the
            network is then unchanged.
    """
    state = network.state_dict()
    counters = {other: torch.tensor(0) for mine, other in ours.items() if mine.endswith("num_batches_tracked")}
    theirs = {**counters, **theirs}
    fits = {mine: theirs[other] for mine, other in ours.items() if other in theirs}
    fits = {mine: value for mine, value in fits.items() if value.shape == state[mine].shape}
    problems = {
        "missing in it": [other for other in ours.values() if other not in theirs],
        "not of this network": [key for key in theirs if key not in ours.values()],
        "of another shape": [
            f"{other} {tuple(theirs[other].shape)}, expected {tuple(state[mine].shape)}"
            for mine, other in ours.items()
            if other in theirs and mine not in fits
        ],
    }
    text = "; ".join(f"{len(keys)} {kind}: {first_of(keys)}" for kind, keys in problems.items() if keys)
    fix = f"build the {type(network).__name__} with the arguments that it was trained with (see a model.json beside it)"
    if least is not None:
        sizes = {mine: value.numel() for mine, value in state.items() if ours[mine] not in counters}
        fitting = [size for mine, size in sizes.items() if mine in fits]
        share = sum(fitting) / sum(sizes.values())
        text = f"{len(fitting)} of {len(sizes)} tensors fit, {share:.1%} of the weights{'; ' * bool(text)}{text}"
        if fitting and share >= least:
            _logger.info(f"{name}: {text}")
            text = ""
        fix = "give weights of such a network, or --pretrained_partial True if some are enough"
    if text:
        raise DataError(name, text, fix)
    network.load_state_dict({**state, **fits})


def load_weights(
    network: nn.Module,
    source: str | os.PathLike | Mapping[str, Any],
    origin: str | None = None,
    least: float | None = None,
) -> None:
    """Load weights into a network, by default all or nothing.

    Args:
        network: the network, alone or wrapped for several processes.
        source: the file (``model.pt`` or a checkpoint), or its content.
        origin: the source's name in errors, by default the file.
        least: see :func:`fill`.

    Raises:
        DataError: if the file cannot be read, its weights are NaN or infinite, or they do not fit the network.

    Example:
        ``load_weights(network, "models/model.pt")``
    """
    name, state = read_state_dict(source)
    name = origin or name
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        raise DataError(name, f"{len(broken)} entries are NaN or infinite: {broken[0]} …", "take an earlier checkpoint")
    network = unwrapped(network)
    fill(network, state, {key: key for key in network.state_dict()}, name, least)


def unwrapped(network: nn.Module) -> nn.Module:
    """Return a network without its wrapper for several devices."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return network.module if isinstance(network, wrappers) else network
