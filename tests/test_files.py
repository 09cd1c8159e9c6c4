# SPDX-License-Identifier: Apache-2.0
import csv
import errno
import io
import os
import platform
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monai_attn.errors import DataError
from monai_attn.files import atomic_write, csv_cell, refuse_folder


def test_a_file_takes_its_name_when_it_is_whole_and_on_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "scan.nii.gz"
    path.write_text("old")
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(path.read_text()) or sync(descriptor))
    with atomic_write(path) as draft:
        assert draft.parent == path.parent
        assert draft.name.endswith("-scan.nii.gz")
        assert draft.name.startswith(".")
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert synced[0] == "old"  # the content is on the disk before the name changes
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii.gz"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no"), OSError(errno.ENOSPC, "No space left")])
def test_what_was_there_stays_and_nothing_else_where_writing_fails(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write():
        with atomic_write(path) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises((KeyboardInterrupt, RuntimeError, DataError)) as caught:
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["table.csv"]
    if isinstance(error, OSError):
        assert isinstance(caught.value, DataError)
        assert (caught.value.what, caught.value.problem) == (str(path), "it cannot be written: No space left")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere nothing is asked of other processes")
def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    draft = f".partial-{platform.node()}"
    others = {f"{draft}-{os.getppid()}-a.txt", f"{draft}-{ended.pid}-b.txt", f"{draft}-x-a.txt"}
    others.add(f".partial-other-host-{ended.pid}-a.txt")
    for name in {*others, f"{draft}-{ended.pid}-a.txt", f"{draft}-{10**30}-a.txt"}:
        (tmp_path / name).write_text("half")
    with atomic_write(tmp_path / "a.txt") as draft:
        draft.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", *others}


@pytest.mark.parametrize("kind", ["absent", "a file"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, kind):
    if kind == "a file":
        (tmp_path / "none").write_text("")
    with pytest.raises(DataError, match="none"), atomic_write(tmp_path / "none" / "a.txt") as draft:
        draft.write_text("x")


@given(st.text(alphabet="=+-@,;\"'\t\r\nab<>|() ", min_size=1), st.text(alphabet="ab,"))
def test_a_cell_is_read_as_one_cell_and_never_as_a_formula(first, second):
    line = f"{csv_cell(first)},{csv_cell(second)}\n"
    rows = list(csv.reader(io.StringIO(line, newline="")))
    assert len(rows) == 1
    assert [cell.removeprefix("'") for cell in rows[0]] == [text.removeprefix("'") for text in (first, second)]
    assert rows[0][0][0] not in "=+-@\t\r"
    assert csv_cell("hippocampus_014") == "hippocampus_014"


def test_a_folder_that_cannot_be_searched_is_named():
    with pytest.raises(DataError, match="it cannot be read: Permission denied"):
        refuse_folder(PermissionError(errno.EACCES, "Permission denied", "scans/p2"))
