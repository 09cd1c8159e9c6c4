# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from monai_attn.errors import DataError
from monai_attn.weights.files import read_tensors

STATE = {"conv.weight": torch.arange(15.0).reshape(3, 5), "bn.running_mean": torch.rand(4)}


@pytest.fixture
def saved(tmp_path) -> Path:
    torch.save(STATE, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def refused(path: Path, *expected: str) -> DataError:
    with pytest.raises(DataError) as caught:
        read_tensors(path)
    for text in expected:
        assert text in str(caught.value)
    assert caught.value.what == str(path)
    assert "weights_only=False" not in str(caught.value)
    assert caught.value.__cause__ is None or "weights_only=False" not in str(caught.value.__cause__)
    return caught.value


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_is_read(tmp_path, zipped):
    torch.save({"model": STATE, "epoch": 3}, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    found = read_tensors(tmp_path / "model.pt")
    assert found["epoch"] == 3
    assert all(torch.equal(found["model"][key], value) for key, value in STATE.items())


def test_a_missing_an_empty_and_a_foreign_file_are_told_apart(tmp_path):
    refused(tmp_path / "no.pt", "there is no such file", "get the published weights")
    refused(tmp_path, "there is no such file")
    path = tmp_path / "model.pt"
    path.write_bytes(b"")
    refused(path, "it is empty")
    for content in (b"<html>log in first</html>", b"\x00" * 900):
        path.write_bytes(content)
        refused(path, "it is no file of plain tensors")


def test_a_pointer_of_git_lfs_is_recognised(tmp_path):
    path = tmp_path / "model.pt"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{64 * 'a'}\nsize 12345\n")
    refused(path, "it is a pointer of Git LFS", "git lfs pull")


def test_a_file_that_was_cut_off_anywhere_is_refused(saved):
    whole = saved.read_bytes()
    for length in range(1, len(whole), 41):
        saved.write_bytes(whole[:length])
        with pytest.raises(DataError):
            read_tensors(saved)


def test_no_flipped_byte_changes_a_tensor_unnoticed(saved):
    whole, noticed = saved.read_bytes(), 0
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        saved.write_bytes(damaged)
        try:
            found = read_tensors(saved)
        except DataError:
            noticed += 1
        else:  # a byte without a meaning, such as a date
            assert found.keys() == STATE.keys()
            assert all(torch.equal(found[key], value) for key, value in STATE.items())
    assert noticed > 50


def test_an_entry_that_is_marked_as_a_folder_is_refused(saved):
    """PyTorch would return what happens to be in memory, and checksums do not cover the mark."""
    damaged = bytearray(saved.read_bytes())
    damaged[damaged.rindex(b"model/data/0") - 46 + 38] ^= 0x10  # within the entry's line in the table of contents
    saved.write_bytes(damaged)
    refused(saved, "it is damaged: model/data/0")


def test_the_damaged_tensor_is_named(saved):
    damaged = bytearray(saved.read_bytes())
    damaged[damaged.index(STATE["bn.running_mean"].numpy().tobytes())] ^= 1
    saved.write_bytes(damaged)
    refused(saved, "it is damaged: model/data/1 is not what was written", "download it again")


class Harm:
    """A pickle of it would write a file when it is read."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_code_in_a_file_does_not_run(tmp_path, kind):
    path, mark = tmp_path / "harm.pt", tmp_path / "mark"
    content = {"model": STATE, "harm": Harm(str(mark))}
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Harm(str(mark)), protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    refused(path, "io.open", "does not read or run", "state_dict")
    assert not mark.exists()


def test_a_whole_network_is_refused_with_its_class(tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Linear(1, 1)), tmp_path / "network.pt")
    refused(tmp_path / "network.pt", "torch.nn.modules.container.Sequential", "torch.save(network.state_dict(), file)")


def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "model.ts"))
    refused(tmp_path / "model.ts", "it is a network in TorchScript")
