# SPDX-License-Identifier: Apache-2.0
"""What the user of a bundle sees: no notices that nobody can act on, no long traces, and an exit code."""

from __future__ import annotations

import logging
import re
import warnings

from monai_attn.errors import CasesError, InputError, root_cause

__all__ = [
    "EXIT_BAD_INPUT",
    "EXIT_FAILURE",
    "EXIT_INCOMPLETE",
    "EXIT_INTERRUPTED",
    "silence_notices",
    "summarize",
    "without_traces",
]

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130
# notices of other packages that a user of a bundle can do nothing about
_NOTICES = (
    r".*`torch\.cuda\.amp\.GradScaler\(args\.\.\.\)` is deprecated.*",
    r".*torch\.cuda\.amp\.GradScaler is enabled, but CUDA is not available.*",
    r".*User provided device_type of 'cuda', but CUDA is not available.*",
    r".*'pin_memory' argument is set as true but no accelerator is found.*",
    r".*get_mask_edges.*always_return_as_numpy.*",
    r".*Orientationd\.__init__:labels: Current default value.*",
    r".*`dataloader` is empty or the specified `epoch_length` is 0.*",
    r".*Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",
    r".*`broadcast_buffers` is deprecated.*",
)
# how MONAI wraps what goes wrong in an entry of a configuration
_ENTRY = re.compile(
    r"(?:instantiate component '|evaluate ConfigExpression:\s*[\"'])([^\n]*?)[\"'](?: with|$)", re.MULTILINE
)


def silence_notices() -> None:
    """Keep warnings away that nobody can act on."""
    for notice in _NOTICES:
        warnings.filterwarnings("ignore", message=notice)
    logging.getLogger("ignite").setLevel(logging.WARNING)


def without_traces(record: logging.LogRecord) -> bool:
    """Keep the traces that engines log on their way down off the screen; the log file has them."""
    return not record.exc_info and not (record.name.startswith("ignite") and record.levelno >= logging.ERROR)


def summarize(error: BaseException) -> tuple[str, int]:
    """What to tell the user about the error that ends a run, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the user", EXIT_INTERRUPTED
    cause = root_cause(error)
    if isinstance(cause, InputError):
        return str(cause), EXIT_BAD_INPUT
    if isinstance(cause, CasesError):
        expected = all(failure.expected for failure in cause.failures)
        return str(cause), EXIT_INCOMPLETE if cause.finished else EXIT_BAD_INPUT if expected else EXIT_FAILURE
    lines, entry = str(cause).strip().splitlines() or [""], _entry_of(error)
    return f"{type(cause).__name__}: {lines[0]}" + (f"\n  in the configuration: {entry}" if entry else ""), EXIT_FAILURE


def _entry_of(error: BaseException) -> str:
    """The component or expression of a configuration that an error comes from, as far as MONAI says so, else empty."""
    entry, cause = "", root_cause(error)
    wrapper: BaseException | None = error
    while wrapper is not None and wrapper is not cause:
        found = _ENTRY.search(str(wrapper))
        entry = found[1] if found else entry
        wrapper = wrapper.__cause__ or wrapper.__context__
    return "" if "session" in entry else entry  # that is the run itself, not a part of it
