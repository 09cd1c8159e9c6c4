# SPDX-License-Identifier: Apache-2.0
"""A pickle of a PyTorch network as records of what it asks for, of which nothing is done.

Unpickling imports what a file names and calls it. Here each name is looked up in a short list, and what it stands for
is a record that keeps what it is given: nothing is imported, nothing is called. A name that is not in the list ends the
reading.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import re
from typing import Any, NamedTuple

__all__ = ["NUMBERS", "ModuleRecord", "ParameterRecord", "Record", "RecordUnpickler", "Storage", "TensorRecord"]

# the kinds of storage that networks have, and their numbers as they are in a file
NUMBERS = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2", "LongStorage": "<i8"}


class Record:
    """What a file asks to be made or called, kept instead.

    Attributes:
        args: the arguments of the call.
        state: what the file wants to be set as the state of the object.
    """

    __slots__ = ("args", "state")
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> Record:
        """Keep the arguments."""
        record = super().__new__(cls)
        record.args, record.state = args, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class ModuleRecord(Record):
    """A module; its state has the dictionaries ``_parameters``, ``_buffers`` and ``_modules``."""

    __slots__ = ()


class ParameterRecord(Record):
    """A parameter; its first argument is the tensor."""

    __slots__ = ()


class TensorRecord(Record):
    """A tensor; its first four arguments are the storage, the offset there, the size and the stride."""

    __slots__ = ()


class Storage(NamedTuple):
    """A storage: its kind, the key by which a file has its numbers, and how many there are."""

    kind: str
    key: str
    size: int


class _Dict(dict):
    """An ordered dictionary without attributes, which could take the place of its methods."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": _Dict,
    "torch._utils._rebuild_tensor": TensorRecord,
    "torch._utils._rebuild_tensor_v2": TensorRecord,
    "torch._utils._rebuild_parameter": ParameterRecord,
    "torch.nn.parameter.Parameter": ParameterRecord,
    "torch.nn.parallel.data_parallel.DataParallel": ModuleRecord,
    "torch.nn.backends.thnn._get_thnn_function_backend": Record,  # every module of the first releases has one
    "builtins.set": Record,
    "__builtin__.set": Record,
    **{f"{package}.{kind}": kind for package in ("torch", "torch.cuda") for kind in NUMBERS},
}
_MODULES = re.compile(
    r"torch\.nn\.modules\.[a-z]+\.[A-Z]\w*"
    r"|(\w+\.)*(relay_net\.ReLayNet|sub_module\.(Basic|Encoder|Decoder|Classifier)Block)"  # relaynet_pytorch
    r"|(\w+\.)*quicknat\.QuickNat|nn_common_modules\.modules\.(Dense|Encoder|Decoder|Classifier)Block"
    r"|squeeze_and_excitation\.squeeze_and_excitation\.SpatialSELayer"  # with the line above, quickNAT_pytorch
)


class RecordUnpickler(pickle.Unpickler):
    """Reads one pickle of a file of ``torch.save``, in either of its formats.

    Args:
        file: the file, at the place where the pickle begins.

    Attributes:
        storages: the storages that the pickle refers to, by their keys.
    """

    def __init__(self, file: io.BytesIO) -> None:
        copyreg.clear_extension_cache()  # what is in there would go past find_class
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name of the file; nothing is imported.

        Raises:
            UnpicklingError: if the name is no part of a network.
        """
        path = f"{module}.{name}"
        if path in _KNOWN:
            return _KNOWN[path]
        if _MODULES.fullmatch(path):
            return ModuleRecord
        raise pickle.UnpicklingError(f"it asks for {path!r:.100}, which is no part of such a network")

    def persistent_load(self, saved: Any) -> Any:
        """What stands for a storage, or for a class that came with its source code."""
        kind, *details = saved
        if kind == "module":  # the class, the name and the text of its source file
            return details[0]
        storage, key, _device, size, *view = details
        if kind != "storage" or storage not in NUMBERS or view not in ([], [None]):
            raise pickle.UnpicklingError("it has a storage of an unknown kind")
        self.storages[key] = Storage(storage, key, size)
        return self.storages[key]
