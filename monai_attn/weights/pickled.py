# SPDX-License-Identifier: Apache-2.0
"""Networks that PyTorch code saved as a whole object, read without running anything that the file asks for.

Both formats of ``torch.save`` are read here, without ``torch.load``: given another unpickler, that still unpacks tar
archives and hands TorchScript archives to ``torch.jit.load``, and it may write the source code that a file brings along
to a ``.patch`` file.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_attn.errors import DataError
from monai_attn.weights.records import NUMBERS, ModuleRecord, ParameterRecord, RecordUnpickler, TensorRecord

__all__ = ["read_pickled"]

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # what a file of the older format begins with


def read_pickled(source: str | os.PathLike) -> Any:
    """Read what ``torch.save`` wrote of a network: the network itself, its state dict, or a checkpoint with it.

    Args:
        source: the file, in the older format or the zip format of ``torch.save``.

    Returns:
        the state dict, or what else the file holds.

    Raises:
        DataError: if the file is damaged, or names anything besides tensors and the modules of PyTorch,
            ai-med/relaynet_pytorch and ai-med/quickNAT_pytorch. No code of it has run then.
        FileNotFoundError: if there is no such file.
    """
    content = Path(source).read_bytes()
    try:
        root, numbers = _read_zip(content) if content.startswith(b"PK\x03\x04") else _read_older(content)
        if isinstance(root, ModuleRecord):
            return {name: _tensor(value, numbers) for name, value in _entries(root)}
        state = root.get("state_dict", root) if isinstance(root, dict) else root
        if not isinstance(state, dict):
            return state
        tensors = (TensorRecord, ParameterRecord)
        return {name: _tensor(value, numbers) if isinstance(value, tensors) else value for name, value in state.items()}
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            os.fspath(source),
            f"it cannot be read as a network that torch.save wrote ({type(error).__name__}: {first})",
            "download it again from its authors, and do not load it in another way",
        ) from error


def _read_zip(content: bytes) -> tuple[Any, dict[str, bytearray]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise pickle.UnpicklingError("it is compressed, which torch.save does not do")
        if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
            raise pickle.UnpicklingError("its numbers are big-endian")
        unpickler = RecordUnpickler(io.BytesIO(archive.read(pickled)))
        root = unpickler.load()
        return root, {key: bytearray(archive.read(f"{folder}data/{key}")) for key in unpickler.storages}


def _read_older(content: bytes) -> tuple[Any, dict[str, bytearray]]:
    """Five pickles (magic number, version, machine, the object, keys of the storages), then the storages."""
    file = io.BytesIO(content)
    magic, version, _machine = (RecordUnpickler(file).load() for _ in range(3))
    if (magic, version) != (_MAGIC, _PROTOCOL):
        raise pickle.UnpicklingError("it does not begin as such a file does")
    unpickler = RecordUnpickler(file)
    root = unpickler.load()
    numbers = {}
    for key in RecordUnpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        numbers[key] = bytearray(file.read(count * np.dtype(NUMBERS[unpickler.storages[key].kind]).itemsize))
    return root, numbers


def _entries(module: ModuleRecord) -> Iterator[tuple[str, Any]]:
    """The parameters and buffers of a module and those inside it, with their names in a state dict."""
    open_modules, seen = [("", module)], set()
    while open_modules:
        prefix, module = open_modules.pop()
        if id(module) in seen:
            raise pickle.UnpicklingError(f"its module {prefix.removesuffix('.')} is also at another place")
        seen.add(id(module))
        for group in ("_parameters", "_buffers"):
            yield from ((prefix + name, value) for name, value in module.state[group].items() if value is not None)
        children = module.state["_modules"].items()
        open_modules += [(f"{prefix}{name}.", child) for name, child in children if child is not None]


def _tensor(record: Any, numbers: dict[str, bytearray]) -> torch.Tensor:
    if isinstance(record, ParameterRecord):
        record = record.args[0]
    if not isinstance(record, TensorRecord):
        raise pickle.UnpicklingError(f"in place of a tensor it has something else: {type(record).__name__}")
    (kind, key, count), offset, size, stride = record.args[:4]
    values = np.frombuffer(numbers[key], NUMBERS[kind])
    if values.size != count:
        raise pickle.UnpicklingError(f"it has {values.size} of the {count} numbers of a tensor")
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(native).as_strided(size, stride, offset)
