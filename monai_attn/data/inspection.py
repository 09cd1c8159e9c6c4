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

__all__ = ["CaseReport", "check_cases"]


class CaseReport(NamedTuple):
    """Report on a case.

    Attributes:
        name: path of the image, relative to the folder of all images.
        shape: size of the image in voxels; empty, as the following, if the case cannot be used.
        spacing: size of a voxel in mm; empty for pictures.
        labels: the values of its label; empty if it has none.
        warnings: what is odd about it.
        error: why it cannot be used.

    Example:
        >>> print(*CaseReport("a.nii", (35, 51, 35), (1, 1, 1), (0, 1, 2)).lines(width=5))
        a.nii  35 x 51 x 35     1 x 1 x 1           0-2           ok
    """

    name: str
    shape: Sequence[float] = ()
    spacing: Sequence[float] = ()
    labels: Sequence[float] = ()
    warnings: Sequence[str] = ()
    error: DataError | None = None

    def lines(self, width: int) -> list[str]:
        """Return a row of a table, with names in a column of ``width``, and below it what is wrong."""
        verdict = "cannot be used" if self.error else "warning" if self.warnings else "ok"
        voxels, size = (" x ".join(f"{length:.4g}" for length in part) or "-" for part in (self.shape, self.spacing))
        reasons = [*self.warnings, *(str(self.error).splitlines() if self.error else [])]
        row = f"{self.name:<{width}}  {voxels:<15}  {size:<18}  {_ranges(self.labels):<12}  {verdict}"
        return [row, *(f"    {reason}" for reason in reasons)]


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
        reports.append(_check_case(steps, name, item))
        yield from reports[-1].lines(width)
    bad = [report.name for report in reports if report.error]
    odd = sum(bool(report.warnings) for report in reports)
    yield f"{len(reports)} cases: {len(reports) - len(bad)} can be used, {len(bad)} cannot; {odd} with warnings"
    if bad:
        more = " …" if len(bad) > 5 else ""
        raise DataError(source, f"{len(bad)} of {len(reports)} cases: {', '.join(bad[:5])}{more}", "see the table")
    training = [report for (section, _), report in zip(pairs, reports) if section == "training"]
    if training and not any(any(report.labels) for report in training):
        problem = f"the labels of all its {len(training)} cases for training are empty"
        raise DataError(source, problem, "give other labels")


def _check_case(steps: Sequence[Callable[[Any], Any]], name: str, item: Any) -> CaseReport:
    with _collected_warnings() as records:
        try:
            loaded = reduce(lambda case, step: step(case), steps, item)
        except DataError as error:
            return CaseReport(name, warnings=[record.getMessage() for record in records], error=error)
    image, label = loaded[CommonKeys.IMAGE], loaded.get(CommonKeys.LABEL)
    spacing = image.pixdim.tolist() if image.ndim == 4 else []
    values = label.unique().tolist() if isinstance(label, torch.Tensor) else []
    return CaseReport(name, image.shape[1:], spacing, values, [record.getMessage() for record in records])


def _ranges(values: Sequence[float]) -> str:
    """Shorten sorted values to ranges.

    Example:
        >>> _ranges([0, 1, 2, 4, 7, 8])
        '0-2 4 7-8'
    """
    runs = [[value for _, value in run] for _, run in groupby(enumerate(values), lambda pair: pair[1] - pair[0])]
    return " ".join(f"{run[0]:g}" + (f"-{run[-1]:g}" if len(run) > 1 else "") for run in runs) or "-"


@contextmanager
def _collected_warnings() -> Iterator[list[logging.LogRecord]]:
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
