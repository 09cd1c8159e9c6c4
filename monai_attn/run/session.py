# SPDX-License-Identifier: Apache-2.0
"""Start and finish runs: processes, errors, exit codes, logs."""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence, Sized
from contextlib import suppress
from datetime import timedelta
from logging.handlers import MemoryHandler
from pathlib import Path
from textwrap import shorten
from types import TracebackType
from typing import Any

import ignite.distributed as idist
import torch
from monai.handlers import StatsHandler, TensorBoardHandler
from tqdm import tqdm

from monai_attn.errors import CasesError, ConfigError, InputError, root_cause
from monai_attn.files import alone_in, writing_to
from monai_attn.run.checks import check_command, remember
from monai_attn.run.report import tidy_screen

__all__ = [
    "EXIT_BAD_INPUT", "EXIT_FAILURE", "EXIT_INCOMPLETE", "EXIT_INTERRUPTED", "finish", "gather", "handlers_of_rank",
    "join", "open_log", "per_process", "report", "share", "start", "summarize",
]  # fmt: skip


# a process waits for the others as long as their cases take; the launcher sees to those that have died
_PATIENCE = timedelta(days=1)


def join() -> None:
    """Join the processes of ``torchrun``, if any, once: NCCL or Gloo.

    Raises:
        ConfigError: if the machine has GPUs, but not one for each of its processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or idist.backend() is not None:
        return
    gpus, processes = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if 0 < gpus < processes:
        problem = f"every process needs a GPU of its own, and there are {gpus}"
        fix = f"give {gpus}, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
        raise ConfigError(f"--nproc_per_node={processes}", problem, fix)
    hook = sys.excepthook
    idist.initialize("nccl" if gpus else "gloo", timeout=_PATIENCE)
    sys.excepthook = hook  # torch puts one in front that loses what a hook prints before it chooses the exit code


def handlers_of_rank(handlers: Sequence[Any]) -> list[Any]:
    """Return this process's handlers; only the first one reports.

    Example:
        >>> [type(handler).__name__ for handler in handlers_of_rank([StatsHandler()])]
        ['StatsHandler']
    """
    reporters = (StatsHandler, TensorBoardHandler)
    return [handler for handler in handlers if idist.get_rank() == 0 or not isinstance(handler, reporters)]


def share(items: Sized, least: int = 0) -> range:
    """Return the indices of the items that this process handles.

    All processes give the same items, and each gets at least ``least``.

    Raises:
        ConfigError: if there are too few items.

    Example:
        >>> share(["a", "b", "c"])
        range(0, 3)
    """
    processes, rank = idist.get_world_size(), idist.get_rank()
    if len(items) < least * processes:
        problem = f"there are only {len(items)} cases for them"
        raise ConfigError(f"{processes} processes", problem, "start fewer processes")
    return range(len(items) * rank // processes, len(items) * (rank + 1) // processes)


def per_process(batch_size: int) -> int:
    """Return this process's share of a batch.

    Raises:
        ConfigError: if the processes cannot have equal shares.

    Example:
        >>> per_process(8)
        8
    """
    share, rest = divmod(batch_size, idist.get_world_size())
    if rest or not share:
        problem = f"{idist.get_world_size()} processes cannot share it equally"
        raise ConfigError(f"--batch_size {batch_size}", problem, "give a multiple, or start other processes")
    return share


def gather(items: Sequence[Any]) -> list[Any]:
    """Return the items of all processes in rank order.

    Example:
        >>> gather([1, 2])
        [1, 2]
    """
    parts: Any = idist.all_gather(list(items))
    return [item for part in parts for item in part]


EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130
_CONTINUE = {"train": "; --resume auto continues it", "inference": "; repeat it without --overwrite to continue"}
# notices of other packages that a user of a bundle can do nothing about
_NOTICES = (
    r".*`torch\.cuda\.amp\.GradScaler\(args\.\.\.\)` is deprecated.*",
    r".*torch\.cuda\.amp\.GradScaler is enabled, but CUDA is not available.*",
    r".*User provided device_type of 'cuda', but CUDA is not available.*",
    r".*'pin_memory' argument is set as true but no accelerator is found.*",
    r".*could be decompression bomb.*",
    r".*get_mask_edges.*always_return_as_numpy.*",
    r".*Orientationd\.__init__:labels: Current default value.*",
    r".*`dataloader` is empty or the specified `epoch_length` is 0.*",
    r".*Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",
    r".*`broadcast_buffers` is deprecated.*",
)


class _Run:
    """Logging and exception hook of a run, to be restored."""

    def __init__(self, name: str, log: Path | None, append: bool, ckpt_dir: str | None) -> None:
        self.name, self.log, self.append, self.ckpt_dir = name, log, append, ckpt_dir
        # nothing is written before the run works: a program may only be looking at the bundle
        self.buffer = MemoryHandler(capacity=0)
        self.restore = tidy_screen()
        # MONAI's logger of losses and metrics does not propagate to the root
        for logger in (logging.getLogger(), logging.getLogger("monai.handlers.StatsHandler")):
            logger.addHandler(self.buffer)
            self.restore.callback(logger.removeHandler, self.buffer)
        self.hook, sys.excepthook = sys.excepthook, self.report

    def open_log(self) -> None:
        """Open the log file; ranks above 0 only log warnings.

        Raises:
            DataError: if the folder is not writable.
        """
        if self.log is None or self.buffer.target is not None:
            return
        rank = idist.get_rank()
        if self.ckpt_dir is not None and rank == 0:
            self.restore.enter_context(alone_in(Path(self.ckpt_dir)))
        with writing_to(self.log.parent, "give another output_dir"):
            self.log.parent.mkdir(parents=True, exist_ok=True)
            if rank == 0 and not self.append:
                self.log.write_text("", encoding="utf-8")
            idist.barrier()
            file = logging.FileHandler(self.log, encoding="utf-8", errors="replace")
        file.addFilter(lambda record: rank == 0 or record.levelno >= logging.WARNING)
        file.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        self.buffer.setTarget(file)
        self.buffer.flush()

    def end(self) -> None:
        """Restore the logging and the exception hook."""
        if sys.excepthook == self.report:
            sys.excepthook = self.hook
        self.restore.close()
        if self.buffer.target is not None:
            self.buffer.target.close()
        self.buffer.close()

    def report(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Print a short error; a replacement for ``sys.excepthook``."""
        message, code = summarize(error)
        foreseen = isinstance(root_cause(error), (InputError, CasesError, KeyboardInterrupt))
        passed = [Path(frame.filename).as_posix() for frame in traceback.extract_tb(trace)]
        # an error of the program that goes on after a run keeps its trace
        of_run = foreseen or any("/monai/bundle/" in file for file in passed)
        if of_run:
            with suppress(InputError):  # where the log cannot be written, the message matters more
                self.open_log()
            logging.getLogger(__name__).error("the run has failed", exc_info=(kind, error, trace))
        logged = self.buffer.target is not None
        self.end()
        if not of_run or os.environ.get("MONAI_ATTN_DEBUG") == "1":
            self.hook(kind, error, trace)
        for bar in list(getattr(tqdm, "_instances", ())):  # the message begins a line of its own
            bar.close()
        if of_run:
            message += _CONTINUE.get(self.name.partition("_")[0], "") * (code == EXIT_INTERRUPTED)
            print(f"monai-attn: {message}", file=sys.stderr)
            print(f"  full trace: {self.log if logged else 'set MONAI_ATTN_DEBUG=1'}", file=sys.stderr)
            raise SystemExit(code)  # how the interpreter lets a hook choose the exit code


_current: _Run | None = None


def start(name: str, output_dir: str | None = None, append: bool = False, ckpt_dir: str | None = None) -> None:
    """Start a run: processes, log, checked overrides and short errors.

    It is the first entry of a bundle's ``initialize``. Until :func:`finish`, an uncaught error prints at most four
    lines, with the trace in ``<output_dir>/<name>.log`` (and on the screen with ``MONAI_ATTN_DEBUG=1``). The exit code
    is 2 if the user can fix it (:class:`monai_attn.errors.InputError`), 3 if some cases have no result, 130 if
    interrupted, else 1.

    Args:
        name: name of the run: ``"train"``, ``"evaluate"`` or ``"inference"``.
        output_dir: folder for the log, written once an engine starts; None for no log.
        append: whether to append to an earlier log, when a training is resumed.
        ckpt_dir: folder of a training; the engine of a second one at the same time gets a ``DataError``.

    Raises:
        ConfigError: if an override names no entry, or this machine has fewer GPUs than processes.

    Example:
        ``"initialize": ["$run.start('train', @output_dir)", ...]``
    """
    global _current
    if _current is not None:
        _current.end()
    for notice in _NOTICES:
        warnings.filterwarnings("ignore", message=notice)
    for package in ("ignite", "monai.bundle.workflows"):
        logging.getLogger(package).setLevel(logging.WARNING)
    _current = _Run(name, Path(str(output_dir), f"{name}.log") if output_dir is not None else None, append, ckpt_dir)
    remember(check_command(sys.argv))
    join()


def open_log() -> None:
    """Open the log of the current run, if any."""
    if _current is not None:
        _current.open_log()


def report(error: BaseException) -> int:
    """Report an error of the current run, if any, and end it; return the exit code."""
    global _current
    message, code = summarize(error)
    if _current is None:
        if code == EXIT_FAILURE:
            traceback.print_exception(error)
        else:
            print(f"monai-attn: {message}", file=sys.stderr)
        return code
    with suppress(SystemExit):
        _current.report(type(error), error, error.__traceback__)
    _current = None
    return code


def finish() -> None:
    """Finish a run and restore the process; a bundle's ``finalize``.

    Example:
        ``"finalize": "$run.finish()"``
    """
    global _current
    if _current is not None:
        _current.end()
    _current = None
    idist.finalize()


def summarize(error: BaseException) -> tuple[str, int]:
    """Return the message and exit code for an error.

    Example:
        >>> summarize(KeyboardInterrupt())
        ('stopped by the user', 130)
    """
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the user", EXIT_INTERRUPTED
    cause = root_cause(error)
    if isinstance(cause, InputError):
        return str(cause), EXIT_BAD_INPUT
    if isinstance(cause, CasesError):
        expected = all(failure.expected for failure in cause.failures)
        return str(cause), EXIT_INCOMPLETE if cause.finished else EXIT_BAD_INPUT if expected else EXIT_FAILURE
    missing = re.search(r"(?:named|install) '?(\w+)", str(cause))
    if missing and isinstance(cause, ImportError):  # the messages differ between packages
        return str(ConfigError(missing[1], shorten(str(cause), 300), f"pip install {missing[1]}")), EXIT_BAD_INPUT
    component = re.match(r"Failed to instantiate component '([\w.]+)'", str(error))
    if component and isinstance(cause, ValueError):
        problem = shorten(str(cause), 300)
        return str(ConfigError(component[1], problem, "correct the option that sets it")), EXIT_BAD_INPUT
    lines = [line for part in (cause, error) for line in str(part).strip().splitlines()[:1]]
    context = f"\n  in: {shorten(lines[1], 150)}" if cause is not error and len(lines) > 1 else ""
    return f"{type(cause).__name__}: {lines[0] if lines else ''}{context}", EXIT_FAILURE
