# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can mend: what cannot be used, what was found, and what to do about it."""

from __future__ import annotations

import re

__all__ = ["ConfigError", "DataError", "InputError", "root_cause"]

_MESSAGE = re.compile(r"cannot use (.*)\n  problem: (.*)\n  mend:    (.*)")


class InputError(ValueError):
    """Something that the user gave cannot be used.

    Args:
        what: the file or argument.
        problem: what was found there, and what was expected.
        mend: what the user can do.
    """

    def __init__(self, what: str, problem: str = "", mend: str = "") -> None:
        # torch raises the error of a data loader's worker again with its whole trace as the only argument
        from_worker = _MESSAGE.search(what)
        if from_worker:
            what, problem, mend = from_worker.groups()
        super().__init__(f"cannot use {what}\n  problem: {problem}\n  mend:    {mend}")
        self.what, self.problem, self.mend = what, problem, mend

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return type(self), (self.what, self.problem, self.mend)


class DataError(InputError):
    """A file or folder cannot be used."""


class ConfigError(InputError):
    """An entry of the configuration, or an override on the command line, cannot be used."""


def root_cause(error: BaseException) -> BaseException:
    """The error that the user should see: the first that can be mended, else the first that happened."""
    while not isinstance(error, InputError):
        earlier = _told_in(str(error)) or error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if earlier is None:
            break
        error = earlier
    return error


def _told_in(text: str) -> InputError | None:
    """The error that a text tells of: from a data loader's process comes the trace of the last error, and no cause."""
    return InputError(text) if _MESSAGE.search(text) else None
