# SPDX-License-Identifier: Apache-2.0
"""Checks of all cases of a data set before a run."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import groupby
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.utils import CommonKeys, ensure_tuple
from tqdm import tqdm

from monai_attn.data.datalist import common_root
from monai_attn.errors import DataError

__all__ = ["check_cases"]


class _Report(NamedTuple):
    """Verdict on a case: ``"ok"``, ``"warning"`` or ``"cannot be used"``; what the table shows, and the reasons."""

    verdict: str
    columns: tuple[str, str, str] = ("-", "-", "-")
    reasons: Sequence[str] = ()
    empty: bool = True


def check_cases(
    steps: Sequence[Callable[[Any], Any]], sections: Mapping[str, Sequence[Mapping[str, Any]]], source: str
) -> Iterator[str]:
    """Load all cases, and report on each; on a terminal with a progress bar.

    Args:
        steps: transforms that load and check the image and label of a case.
        sections: cases of each section, as :func:`monai_attn.data.cases` gives them.
        source: name of the data set in errors.

    Yields:
        the lines of a table and of a summary.

    Raises:
        DataError: at the end, if cases cannot be used, or all labels of the section ``training`` are empty.

    Example:
        ``for line in check_cases([SafeLoadImaged("image")], {"input": find_images("scans")}, "scans"): print(line)``
    """
    pairs = [(section, item) for section, items in sections.items() for item in items]
    root = common_root([item for _, item in pairs])
    names = [str(Path(ensure_tuple(item["image"])[0]).absolute().relative_to(root)) for _, item in pairs]
    width = max(map(len, names))
    yield f"{'case':<{width}}  {'voxels':<15}  {'mm':<18}  {'labels':<12}"
    reports = []
    for name, (_, item) in zip(names, tqdm(pairs, "check", leave=False, unit="case", disable=None)):
        report = _check_case(steps, item)
        reports.append(report)
        voxels, size, labels = report.columns
        yield f"{name:<{width}}  {voxels:<15}  {size:<18}  {labels:<12}  {report.verdict}"
        yield from (f"    {reason}" for reason in report.reasons)
    bad = [name for name, report in zip(names, reports) if report.verdict == "cannot be used"]
    odd = sum(report.verdict == "warning" for report in reports)
    yield f"{len(reports)} cases: {len(reports) - len(bad)} can be used, {len(bad)} cannot; {odd} with warnings"
    if bad:
        more = " …" if len(bad) > 5 else ""
        raise DataError(source, f"{len(bad)} of {len(reports)} cases: {', '.join(bad[:5])}{more}", "see the table")
    training = [report.empty for (section, _), report in zip(pairs, reports) if section == "training"]
    if training and all(training):
        problem = f"the labels of all its {len(training)} cases for training are empty"
        raise DataError(source, problem, "give other labels")


def _check_case(steps: Sequence[Callable[[Any], Any]], item: Any) -> _Report:
    failure, loaded = None, {}
    with _collected_records() as records:
        try:
            loaded = reduce(lambda case, step: step(case), steps, item)
        except DataError as error:
            failure = error
    warnings = [record.getMessage() for record in records]
    if failure is not None:
        return _Report("cannot be used", reasons=[*warnings, *str(failure).splitlines()])
    image, label = loaded[CommonKeys.IMAGE], loaded.get(CommonKeys.LABEL)
    values = label.unique().tolist() if isinstance(label, torch.Tensor) else []
    spacing = image.pixdim.tolist() if image.ndim == 4 else []
    voxels, size = (" x ".join(f"{length:.4g}" for length in lengths) or "-" for lengths in (image.shape[1:], spacing))
    return _Report("warning" if warnings else "ok", (voxels, size, _ranges(values)), warnings, not any(values))


def _ranges(values: Sequence[float]) -> str:
    """Shorten sorted values to ranges.

    Example:
        >>> _ranges([0, 1, 2, 4, 7, 8])
        '0-2 4 7-8'
    """
    runs = [[value for _, value in run] for _, run in groupby(enumerate(values), lambda pair: pair[1] - pair[0])]
    return " ".join(f"{run[0]:g}" + (f"-{run[-1]:g}" if len(run) > 1 else "") for run in runs) or "-"


@contextmanager
def _collected_records() -> Iterator[list[logging.LogRecord]]:
    """Collect the warnings that this package logs, which then do not go on the screen."""
    logger, handler = logging.getLogger("monai_attn"), BufferingHandler(sys.maxsize)
    handler.setLevel(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
