# SPDX-License-Identifier: Apache-2.0
"""Errors that users can fix, and failures of cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["CasesError", "ConfigError", "DataError", "Failure", "InputError", "root_cause"]

_MESSAGE = re.compile(r"cannot use (.*)\n  problem: (.*)\n  fix:     (.*)")


class InputError(ValueError):
    """Error in the user's input, with a fix.

    Args:
        what: the file or argument.
        problem: what was found, and what was expected.
        fix: what the user can do.

    Example:
        >>> isinstance(DataError("a.nii", "it is empty", "copy it again"), InputError)
        True
    """

    def __init__(self, what: str, problem: str = "", fix: str = "") -> None:
        # torch raises the error of a data loader's worker again with its whole trace as the only argument
        from_worker = _MESSAGE.search(what)
        if from_worker:
            what, problem, fix = from_worker.groups()
        super().__init__(f"cannot use {what}\n  problem: {problem}\n  fix:     {fix}")
        self.what, self.problem, self.fix = what, problem, fix

    def __reduce__(self) -> tuple[type[InputError], tuple[str, str, str]]:
        return type(self), (self.what, self.problem, self.fix)


class DataError(InputError):
    """Error in a file or folder.

    Example:
        >>> print(DataError("a.nii", "it is empty", "copy it again"))
        cannot use a.nii
          problem: it is empty
          fix:     copy it again
    """


class ConfigError(InputError):
    """Error in the configuration or on the command line.

    Example:
        >>> ConfigError("--epoch", "no entry named 'epoch'", "did you mean --epochs?").what
        '--epoch'
    """


def root_cause(error: BaseException) -> BaseException:
    """Return an exception chain's first user-fixable error, or its root.

    Example:
        >>> try:
        ...     raise RuntimeError("applying transform") from DataError("a.nii", "it is empty", "copy it again")
        ... except RuntimeError as error:
        ...     type(root_cause(error)).__name__
        'DataError'
    """
    while not isinstance(error, (InputError, CasesError)):
        if _MESSAGE.search(str(error)):  # the trace of a data loader's process, which has no cause
            return InputError(str(error))
        earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if earlier is None:
            break
        error = earlier
    return error


class Failure(NamedTuple):
    """Reason why a case has no result.

    Its fields are those of :class:`InputError`, and whether the error was expected.

    Example:
        >>> Failure.of(ZeroDivisionError("division by zero"), "a.nii").expected
        False
    """

    what: str
    problem: str
    fix: str
    expected: bool = True

    @classmethod
    def of(cls, error: BaseException, case: str) -> Failure:
        """Return an error as a failure, by default of ``case``."""
        cause = root_cause(error)
        if isinstance(cause, InputError):
            return cls(cause.what, cause.problem, cause.fix)
        line = (str(cause).strip().splitlines() or [""])[0]
        # torch's own class for a GPU, and its plain RuntimeError for a CPU
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or "allocate memory" in line:
            return cls(case, f"memory ran out: {line}", "give --device cpu, or use a machine with more memory")
        return cls(case, f"{type(cause).__name__}: {line}", "see the trace in the log", expected=False)

    def __str__(self) -> str:
        return f"cannot use {self.what}\n  problem: {self.problem}\n  fix:     {self.fix}"


class CasesError(RuntimeError):
    """Error at the end of a run with failed cases.

    Args:
        failures: the failed cases.
        finished: number of the others.

    Example:
        >>> print(CasesError([Failure("a.nii", "it is empty", "copy it again")], finished=4))
        1 of 5 cases have no result
        cannot use a.nii
          problem: it is empty
          fix:     copy it again
    """

    shown = 20

    def __init__(self, failures: Sequence[Failure], finished: int) -> None:
        blocks = [str(failure) for failure in failures[: self.shown]]
        if len(failures) > self.shown:
            blocks.append(f"and {len(failures) - self.shown} more, which the manifest names")
        if len(failures) + finished > 1:
            blocks.insert(0, f"{len(failures)} of {len(failures) + finished} cases have no result")
        super().__init__("\n".join(blocks))
        self.failures, self.finished = failures, finished
