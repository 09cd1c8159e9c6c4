# SPDX-License-Identifier: Apache-2.0
"""A dataset in which one bad case does not end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from monai.data import Dataset
from monai.utils import CommonKeys, ensure_tuple, look_up_option

from monai_attn.errors import ConfigError, Failure, root_cause

__all__ = ["CaseDataset", "failure_in"]

_KEY = "failure"


class CaseDataset(Dataset):
    """MONAI's ``Dataset``, with an item that says what is wrong in the place of a case that cannot be prepared.

    :class:`monai_attn.handlers.SkipFailedCases` passes such an item over and keeps account of it. The loader must make
    batches of one case.

    Args:
        data: dictionaries with ``image``, the file or files of a case.
        transform: what prepares a case.
        on_error: ``"stop"`` to raise the error, ``"skip"`` for the item. An error of the configuration is raised
            anyway, as it would hit every case.
        unfinished: returns those of ``data`` that are to be done, such as :class:`monai_attn.run.FinishedCases`.

    Attributes:
        finished: number of cases that ``unfinished`` left out.

    Example:
        >>> def read(case):
        ...     raise EOFError("nothing left")
        >>> failure_in(CaseDataset([{"image": "a.nii"}], read, on_error="skip")[0]).problem
        'EOFError: nothing left'
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable | None = None,
        *,
        on_error: str = "stop",
        unfinished: Callable[[Sequence], list] | None = None,
    ) -> None:
        super().__init__(data if unfinished is None else unfinished(data), transform)
        self.finished = getattr(unfinished, "finished", 0)
        self.on_error = look_up_option(on_error, ("stop", "skip"))

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:  # whatever is wrong with the case
            if self.on_error == "stop" or isinstance(root_cause(error), ConfigError):
                raise
            case = str(ensure_tuple(self.data[index][CommonKeys.IMAGE])[0])
            logging.getLogger(__name__).exception("%s cannot be prepared", case)
            return {_KEY: Failure.of(error, case)._asdict()}


def failure_in(item: Mapping[str, Any]) -> Failure | None:
    """Why a case could not be prepared, from its item or its batch of one; None if it could."""
    if _KEY not in item:
        return None
    what, problem, fix, expected = (item[_KEY][name] for name in Failure._fields)
    if not isinstance(what, str):  # a batch of one
        what, problem, fix, expected = what[0], problem[0], fix[0], expected[0]
    return Failure(what, problem, fix, bool(expected))
