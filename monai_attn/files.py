# SPDX-License-Identifier: Apache-2.0
"""Files that are there whole or not at all, and tables that a spreadsheet can open without harm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from monai_attn.errors import DataError

__all__ = ["atomic_write", "csv_cell"]

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


@contextmanager
def atomic_write(path: str | Path, fix: str = "make room, or give another output_dir") -> Iterator[Path]:
    """A file to write to that takes the place of ``path`` once it is whole.

    It lies in the same folder and has the same ending, so that writers choose the same format. When the block ends, it
    is forced to the disk and renamed, which happens at once or not at all. Where the block raises, it is removed, and
    what ``path`` was before is untouched. What a process that was killed has left is removed by the next one.

    Args:
        path: the file to make or to replace.
        fix: what the user can do where it cannot be written.

    Raises:
        DataError: if the file cannot be written, such as on a full disk.

    Example:
        ``with atomic_write("table.csv") as draft: draft.write_text("case,dice")``
    """
    path = Path(path)
    draft = path.with_name(f".partial-{os.getpid()}-{path.name}")  # hidden: no search for images finds it
    try:
        _remove_left_drafts(path)
        yield draft
        with open(draft, "rb+") as file:
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DataError(str(path), f"it cannot be written: {error.strerror or error}", fix) from error
    finally:
        with suppress(OSError):  # which would hide the error that matters
            draft.unlink(missing_ok=True)


def _remove_left_drafts(path: Path) -> None:
    """Remove drafts of a file by processes that are no more, where the system can tell without stopping them."""
    if os.name != "posix":
        return
    for draft in path.parent.glob(f".partial-*-{escape(path.name)}"):
        number = draft.name.removeprefix(".partial-").split("-")[0]
        if number.isdecimal() and not _is_running(int(number)):
            draft.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # somebody else's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Force a renaming to the disk, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def csv_cell(text: str) -> str:
    """A text, such as a file name, as one cell of a CSV table that no spreadsheet takes for a formula.

    Example:
        >>> print(csv_cell("case_1"), csv_cell("=cmd()"), csv_cell("a,b"))
        case_1 '=cmd() "a,b"
    """
    if text.startswith(_FORMULA_STARTS):
        text = f"'{text}"
    if any(character in text for character in ',"\r\n'):
        text = '"' + text.replace('"', '""') + '"'
    return text
