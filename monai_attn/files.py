# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, folder locks, CSV cells, and messages about files."""

from __future__ import annotations

import io
import logging
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout

from monai_attn.errors import DataError

__all__ = ["alone_in", "atomic_write", "check_content", "content_of", "csv_cell", "first_of", "print_any_name", "say"]
__all__ += ["refuse_folder", "say_left_out", "writing_to"]

_LOGGER = logging.getLogger(__name__)
_DRAFT = f".partial-{platform.node()}-"  # other hosts may write to the same folder
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_folder(error: OSError) -> None:
    """Raise for a folder that cannot be searched; for ``os.walk``."""
    problem = f"it cannot be read: {error.strerror}"
    raise DataError(str(error.filename), problem, "change its permissions, or move it away") from error


@contextmanager
def writing_to(path: str | os.PathLike, fix: str) -> Iterator[None]:
    """Name the path and a fix in write errors.

    Raises:
        DataError: if it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(str(path), f"it cannot be written: {error.strerror or error}", fix) from error


@contextmanager
def atomic_write(path: str | Path, fix: str = "make room, or give another output_dir") -> Iterator[Path]:
    """Write a file atomically: yield a draft, then rename it.

    The draft lies in the same folder and has the same extension, so that writers choose the same format. It is synced
    to the disk and renamed at the end, or removed if the block raises. Drafts left by killed processes of this host are
    removed next time.

    Args:
        path: the file to make or to replace.
        fix: what the user can do if it cannot be written.

    Raises:
        DataError: if the file cannot be written, such as on a full disk.

    Example:
        ``with atomic_write("table.csv") as draft: draft.write_text("case,dice")``
    """
    path = Path(path)
    draft = path.with_name(f"{_DRAFT}{os.getpid()}-{path.name}")  # hidden: no search for images finds it
    try:
        with writing_to(path, fix):
            _remove_left_drafts(path)
            yield draft
            with open(draft, "rb+") as file:
                os.fsync(file.fileno())
            draft.replace(path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # which would hide the error that matters
            draft.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock the folder of a training until it ends.

    Raises:
        DataError: if a training of another process is running there.

    Example:
        ``with alone_in(Path("models")): ...``
    """
    lock = FileLock(folder / ".training.lock", timeout=0, is_singleton=True)  # a process may lock it again
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        fix = "wait for its end, or give another ckpt_dir"
        raise DataError(str(folder), "another training is writing to it", fix) from error
    except (OSError, NotImplementedError):  # no locks here, or read-only, as the first checkpoint reports
        pass
    try:
        yield
    finally:
        lock.release()


def _remove_left_drafts(path: Path) -> None:
    """Remove drafts of this host's processes that have ended (POSIX only)."""
    if os.name != "posix":
        return
    for draft in path.parent.glob(f"{_DRAFT}*-{escape(path.name)}"):
        number = draft.name.removeprefix(_DRAFT).split("-")[0]
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
    """Sync a renaming to the disk (POSIX only)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def csv_cell(text: str) -> str:
    """Quote a text for CSV, and disarm spreadsheet formulas.

    Example:
        >>> print(csv_cell("case_1"), csv_cell("=cmd()"), csv_cell("a,b"))
        case_1 '=cmd() "a,b"
    """
    if text.startswith(_FORMULA_STARTS):
        text = f"'{text}"
    if any(character in text for character in ',"\r\n'):
        text = '"' + text.replace('"', '""') + '"'
    return text


def check_content(path: str | os.PathLike) -> bytes:
    """Return the first bytes of a file.

    Raises:
        DataError: if it is empty or a pointer of Git LFS.
    """
    with open(path, "rb") as file:
        begin = file.read(len(_LFS_POINTER))
    if not begin:
        raise DataError(str(path), "the file is empty (0 bytes)", "copy or download it again")
    if begin == _LFS_POINTER:
        problem = "it is a pointer of Git LFS, not the file itself"
        raise DataError(str(path), problem, "run `git lfs pull` where it lies")
    return begin


def content_of(folder: Path) -> str:
    """Return the first names in a folder."""
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(present[:5]) or "nothing"


def first_of(names: Sequence[str], shown: int = 3) -> str:
    """Join the first names, with an ellipsis for more.

    Example:
        >>> first_of(["a", "b", "c", "d"])
        'a, b, c …'
    """
    return ", ".join(names[:shown]) + (" …" if len(names) > shown else "")


@cache
def say(message: str) -> None:
    """Log a warning once per process."""
    _LOGGER.warning(message)


def say_left_out(root: Path, files: Sequence[Path], why: str) -> None:
    """Say which files of a folder are left out and why."""
    if files:
        names = [os.path.relpath(file, root) for file in files]
        say(f"{root}: {len(files)} left out, {why}: {first_of(names)}")


def print_any_name() -> None:
    """Replace characters that the terminal cannot encode."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
