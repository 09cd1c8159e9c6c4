# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copyreg
import io
import os
import pickle
import struct
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monai_attn.errors import DataError
from monai_attn.weights import records
from monai_attn.weights.pickled import read_pickled

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Sequential(nn.BatchNorm2d(3), nn.PReLU()), nn.Softmax2d())


def same(found: Any, expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)


# --- what is read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_whole_network_is_read_to_its_state_dict(tmp_path, zipped, protocol):
    path = tmp_path / "whole.model"
    torch.save(network(), path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    for source in (path, str(path)):
        same(read_pickled(source), network().state_dict())


@pytest.mark.parametrize("zipped", [False, True])
def test_state_dicts_and_checkpoints_with_one_are_read(tmp_path, zipped):
    path, state = tmp_path / "state.pth", network().state_dict()
    for content in (state, {"epoch": 3, "state_dict": state, "best": (0.5, None)}):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        same(read_pickled(path), state)
    torch.save([1, {"a": (2.5, "b")}], path, _use_new_zipfile_serialization=zipped)
    assert read_pickled(path) == [1, {"a": (2.5, "b")}]


@pytest.mark.parametrize("zipped", [False, True])
def test_parts_of_a_storage_and_other_types_are_read(tmp_path, zipped):
    numbers = torch.randn(4, 6)
    state = {"transposed": numbers.t(), "part": numbers[1:3, ::2], "repeated": numbers[:1].expand(3, 6)}
    state |= {"long": torch.arange(3), "double": torch.rand(2).double(), "half": torch.rand(2).half()}
    state |= {"scalar": torch.tensor(7), "parameter": nn.Parameter(torch.rand(2))}
    path = tmp_path / "state.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    same(read_pickled(path), {key: value.detach() for key, value in state.items()})


def test_a_wrapped_network_keeps_the_wrappers_prefix(tmp_path):
    path = tmp_path / "wrapped.model"
    torch.save(nn.DataParallel(network()), path)
    same(read_pickled(path), {f"module.{key}": value for key, value in network().state_dict().items()})


# --- what a file may ask for --------------------------------------------------------------------------------------


def call(function: str, *args: Any) -> bytes:
    """A pickle that calls a function; ``module:name`` allows names with dots, as in newer pickles."""
    module, name = function.split(":") if ":" in function else function.rsplit(".", 1)
    named = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name)) + b"\x93"
    return named + inner(args) + b"R."


def inner(value: Any) -> bytes:
    """The pickle of a value, to be put inside another."""
    return pickle.dumps(value, 2)[2:-1]


def older(*, magic=None, version=None, machine=None, root=None, keys=None, numbers: bytes = b"") -> bytes:
    """A file of the older format of torch.save, each of whose pickles can be given."""
    parts = zip((magic, version, machine, root, keys), (MAGIC, VERSION, {"little_endian": True}, {}, []))
    return b"".join(pickle.dumps(usual, 2) if part is None else part for part, usual in parts) + numbers


def newer(root: bytes, compression: int = zipfile.ZIP_STORED, **others: bytes) -> bytes:
    """A file of the zip format of torch.save."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", root)
        for name, content in others.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def refused(path: Path, content: bytes, *expected: str) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_pickled(path)
    for text in (path.name, "it cannot be read as a network", "do not load it in another way", *expected):
        assert text in str(caught.value)


def harmful(mark: Path) -> dict[str, bytes]:
    code = f"open({str(mark)!r}, 'w').close()"
    nested = call("builtins.exec", code)
    return {
        "exec": nested,
        "eval": call("builtins.eval", code),
        "open": call("builtins.open", str(mark), "w"),
        "system": call(f"{os.name}.system", f"echo > {mark}"),
        "mkdir": call("os.mkdir", str(mark)),
        "popen": call("subprocess.call", ["mkdir", str(mark)]),
        "partial": b"\x80\x02cfunctools\npartial\n(cbuiltins\nexec\n" + inner(code) + b"tR)R.",
        "code": call("code.interact", None, None, {"__builtins__": {}}),
        "storage": call("torch.storage._load_from_bytes", older(root=nested)),
        "nested": call("pickle.loads", nested),
        # names behind an allowed module or class
        "torch.nn": call("torch.nn.modules.module:torch.serialization.os.mkdir", str(mark)),
        "builtins": call("torch.nn.modules.module:__builtins__", code),
        "globals": call("relaynet_pytorch.relay_net:ReLayNet.__init__.__globals__", code),
        "module": call("torch.nn.modules.conv:Conv2d.__class__", code),
        "path": call("os.relay_net:ReLayNet.__reduce__", code),
        # steps on the way to others
        "getattr": call("builtins.getattr", [], "append"),
        "import": call("builtins.__import__", "os"),
        "importlib": call("importlib.import_module", "os"),
        "attrgetter": call("operator.attrgetter", "__class__"),
        "reconstructor": call("copyreg._reconstructor", 1, 2, 3),
        "object": call("builtins.object"),
        "type": call("builtins.type", "name", (), {}),
        "load": call("torch.load", str(mark)),
        "hub": call("torch.hub.load", "owner/name", "model"),
        "jit": call("torch.jit.load", str(mark)),
        "rebuild": call("torch._utils._rebuild_wrapper_subclass", 1),
        "utils": call("torch._utils._import_dotted_name", "os.system"),
        "layout": call("torch.serialization._get_layout", "torch.strided"),
        "function": call("torch.nn.modules.module.register_module_forward_hook", 1),
        "functional": call("torch.nn.functional.handle_torch_function", 1),
        "numpy": call("numpy.core.multiarray._reconstruct", 1, (0,), b"b"),
        "ours": call("monai_attn.weights.records.Record"),
        "tensor": call("torch.Tensor"),
        "size": call("torch.Size", (1,)),
        "set": call("builtins.frozenset", (1,)),
        "empty": call(":"),
    }


@pytest.mark.parametrize("kind", harmful(Path("mark")))
def test_a_file_that_asks_for_anything_else_is_refused_and_does_not_get_it(tmp_path, kind):
    mark = tmp_path / "mark"
    harm = harmful(mark)[kind]
    inside = b"\x80\x04(X\x01\x00\x00\x00a" + harm[2:-1] + b"d."  # {"a": ...}
    for root in (harm, inside):
        refused(tmp_path / "older.model", older(root=root), "it asks for")
        refused(tmp_path / "newer.model", newer(root), "it asks for")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["exec", "eval", "open", "system", "mkdir", "popen", "partial", "storage", "nested"])
def test_the_harmful_files_of_these_tests_are_harmful(tmp_path, kind):
    mark = tmp_path / "mark"
    pickle.loads(harmful(mark)[kind])
    assert mark.exists()


@pytest.mark.parametrize("place", ["magic", "version", "machine", "root", "keys"])
def test_each_part_of_the_older_format_is_read_with_the_same_care(tmp_path, place):
    mark = tmp_path / "mark"
    refused(tmp_path / "older.model", older(**{place: harmful(mark)["exec"]}), "it asks for 'builtins.exec'")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(Vecho\ntR.",
        b"(Vecho\nios\nsystem\n.",  # the oldest way to make an object
        b"(cos\nsystem\nVecho\no.",
        b"\x80\x02cos\nsystem\n)\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04echo\x85R.",
    ],
)
def test_no_instruction_of_a_pickle_gets_around_the_list(tmp_path, content):
    refused(tmp_path / "older.model", older(root=content), "it asks for 'os.system'")
    refused(tmp_path / "newer.model", newer(content), "it asks for 'os.system'")


def test_a_code_for_a_function_that_was_in_use_before_does_not_get_around_the_list(tmp_path):
    mark, code = tmp_path / "mark", b"\x82\xc8"
    copyreg.add_extension(os.name, "mkdir", 200)
    try:
        harm = code + inner((str(mark),)) + b"R."
        pickle.loads(harm)
        mark.rmdir()
        refused(tmp_path / "older.model", older(root=harm), f"it asks for '{os.name}.mkdir'")
        refused(tmp_path / "newer.model", newer(harm), f"it asks for '{os.name}.mkdir'")
    finally:
        copyreg.remove_extension(os.name, "mkdir", 200)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"(Vos\nVsystem\nR.",  # a text is called
        b"P123\n.",  # a persistent id that is a text
        b"(Vmodule\ntQ.",
        b"(Vstorage\nVO\nV0\nVcpu\nI1\ntQ.",
        b"(Vother\nVFloatStorage\nV0\nVcpu\nI1\ntQ.",
        b"(Vstorage\nVFloatStorage\nV0\nVcpu\nI1\nV(a view)\ntQ.",
        b"\x80\x05\x97.",  # bytes from elsewhere
        b"\x82\x01.",  # a code for a name that nobody registered
    ],
)
def test_other_instructions_that_no_network_needs_are_refused(tmp_path, content):
    refused(tmp_path / "older.model", older(root=content))
    refused(tmp_path / "newer.model", newer(content))


CONV = b"\x80\x02ctorch.nn.modules.conv\nConv2d\n"


def test_a_class_cannot_be_changed(tmp_path):
    before = {name: dict(vars(kind)) for name, kind in vars(records).items() if isinstance(kind, type)}
    for target in (CONV, b"\x80\x02ccollections\nOrderedDict\n", b"\x80\x02ctorch\nFloatStorage\n"):
        for state in ((None, {"dump_patches": True, "items": 3}), {"__setstate__": 3}, (None, {"__new__": 3})):
            refused(tmp_path / "older.model", older(root=target + inner(state) + b"b."))
        refused(tmp_path / "older.model", older(root=target + inner("items") + inner(3) + b"s."))
    for name, entries in before.items():
        assert dict(vars(getattr(records, name))) == entries


def test_what_a_file_makes_cannot_be_called_and_its_state_is_only_kept(tmp_path):
    refused(tmp_path / "older.model", older(root=CONV + b")\x81)R."), "not callable")
    state = {"__reduce__": 1, "__class__": 2, "__del__": 3, "_parameters": {}, "_buffers": {}, "_modules": {}}
    path = tmp_path / "older.model"
    path.write_bytes(older(root=CONV + b")\x81" + inner(state) + b"b."))
    assert read_pickled(path) == {}


def test_a_dictionary_takes_no_attributes(tmp_path):
    path = tmp_path / "older.model"
    root = b"\x80\x02ccollections\nOrderedDict\n)R" + inner({"items": 3, "get": 4}) + b"b."
    path.write_bytes(older(root=root))
    assert read_pickled(path) == {}
    assert not hasattr(read_pickled(path), "__dict__")


@pytest.mark.parametrize("flag", [False, True])
def test_source_code_in_a_file_is_not_looked_at(tmp_path, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "older.model"
    source = inner("file.py") + inner("import os" if flag else "")
    root = b"\x80\x02(" + inner("module") + CONV[2:] + source + b"tQ)\x81"
    root += inner({"_parameters": {}, "_buffers": {}, "_modules": {}}) + b"b."
    path.write_bytes(older(root=root))
    assert read_pickled(path) == {}
    assert [file.name for file in tmp_path.iterdir()] == ["older.model"]


def test_reading_imports_nothing(tmp_path):
    classes = types.ModuleType("networks")
    module = types.ModuleType("networks.relay_net")

    class ReLayNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(2, 2)

    ReLayNet.__module__, ReLayNet.__qualname__, module.ReLayNet = module.__name__, "ReLayNet", ReLayNet
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "networks", classes)
        patch.setitem(sys.modules, module.__name__, module)
        torch.save(ReLayNet(), tmp_path / "relaynet.model")
    before = set(sys.modules)
    assert list(read_pickled(tmp_path / "relaynet.model")) == ["last.weight", "last.bias"]
    assert set(sys.modules) == before


# --- damage, and files of other kinds -----------------------------------------------------------------------------


def module(parameters: dict[str, Any] | None = None, modules: dict[str, Any] | None = None) -> bytes:
    state = {"_parameters": parameters or {}, "_buffers": {}, "_modules": modules or {}}
    return CONV + b")\x81" + inner(state) + b"b."


def tensor(size: tuple, stride: tuple, *, offset: int = 0, count: int = 4, kind: str = "FloatStorage") -> bytes:
    """A pickle of {"a": a tensor} whose storage has the key 0."""
    storage = b"(Vstorage\nctorch\n" + kind.encode() + b"\nV0\nVcpu\n" + inner(count) + b"tQ"
    args = b"(" + storage + inner(offset) + inner(size) + inner(stride) + b"t"
    return b"\x80\x02}Va\nctorch._utils\n_rebuild_tensor\n" + args + b"Rs."


FOUR = struct.pack("<4f", 1, 2, 3, 4)


def test_the_tensor_of_the_next_tests_is_one_if_nothing_is_wrong(tmp_path):
    path = tmp_path / "good.model"
    for content in (
        older(root=tensor((2, 2), (1, 2)), keys=pickle.dumps(["0"], 2), numbers=struct.pack("<q", 4) + FOUR),
        newer(tensor((2, 2), (1, 2)), **{"data/0": FOUR, "byteorder": b"little"}),
    ):
        path.write_bytes(content)
        same(read_pickled(path), {"a": torch.tensor([[1.0, 3.0], [2.0, 4.0]])})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"size": (5,), "stride": (1,)}, "out of bounds"),
        ({"size": (2,), "stride": (9,)}, "out of bounds"),
        ({"size": (2,), "stride": (1,), "offset": 3}, "out of bounds"),
        ({"size": (2,), "stride": (1,), "offset": -1}, "RuntimeError"),
        ({"size": (2,), "stride": (-1,)}, "RuntimeError"),
        ({"size": ("a",), "stride": (1,)}, "TypeError"),
        ({"size": (4,), "stride": (1,), "count": 5}, "4 of the 5 numbers"),
        ({"size": (4,), "stride": (1,), "count": 3}, "4 of the 3 numbers"),
        ({"size": (2,), "stride": (1,), "count": 2, "kind": "BFloat16Storage"}, "it asks for 'torch.BFloat16Storage'"),
    ],
)
def test_a_tensor_that_does_not_fit_its_numbers_is_refused(tmp_path, options, problem):
    keys = pickle.dumps(["0"], 2)
    content = older(root=tensor(**options), keys=keys, numbers=struct.pack("<q", 4) + FOUR)
    refused(tmp_path / "older.model", content, problem)
    refused(tmp_path / "newer.model", newer(tensor(**options), **{"data/0": FOUR}), problem)


@pytest.mark.parametrize("count", [-1, 5, 2**60])
def test_a_storage_of_another_length_is_refused(tmp_path, count):
    content = older(root=tensor((4,), (1,)), keys=pickle.dumps(["0"], 2), numbers=struct.pack("<q", count) + FOUR[:-4])
    refused(tmp_path / "older.model", content, "3 of the 4 numbers")


@pytest.mark.parametrize(
    ("root", "problem"),
    [
        (module({"weight": 3}), "in place of a tensor it has something else: int"),
        (module({3: OrderedDict()}), "TypeError"),
        (module(modules={"a": 3}), "AttributeError"),
        (CONV + b")\x81.", "TypeError"),
        (CONV + b")\x81" + inner({"_parameters": [1]}) + b"b.", "AttributeError"),
    ],
)
def test_a_network_with_other_things_in_the_place_of_its_parts_is_refused(tmp_path, root, problem):
    refused(tmp_path / "older.model", older(root=root), problem)


def test_a_network_that_holds_itself_is_refused(tmp_path):
    state = b"}(V_parameters\n}V_buffers\n}V_modules\n}Va\nh\x00su"
    refused(tmp_path / "older.model", older(root=CONV + b")\x81q\x00" + state + b"b."), "a is also at another place")


def test_archives_of_other_kinds_are_refused(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "other.model"
    torch.jit.save(torch.jit.script(network()), path)
    refused(path, path.read_bytes())
    refused(path, newer(pickle.dumps({}, 2), zipfile.ZIP_DEFLATED), "compressed")
    refused(path, newer(pickle.dumps({}, 2), byteorder=b"big"), "big-endian")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("other/content", b"")
    refused(path, file.getvalue())
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:  # torch.save until 2016
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(harmful(mark)["exec"])
            tar.addfile(entry, io.BytesIO(harmful(mark)["exec"]))
    refused(path, file.getvalue())
    refused(path, b"version https://git-lfs.github.com/spec/v1\n")
    refused(path, pickle.dumps({"a": 1}, 2))
    assert not mark.exists()


def test_a_flipped_byte_in_a_zip_file_is_noticed(tmp_path):
    path = tmp_path / "flipped.model"
    torch.save(network(), path)
    content = bytearray(path.read_bytes())
    content[content.index(network()[0].weight.detach().numpy().tobytes()) + 5] ^= 1
    refused(path, bytes(content), "CRC")


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pickled(tmp_path / "no.model")
