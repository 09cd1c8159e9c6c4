# SPDX-License-Identifier: Apache-2.0
"""A look at every case of a data set by the rules of a bundle, before a run takes its time over them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from monai.utils import ensure_tuple
from tqdm import tqdm

from monai_attn.data.datalist import cases, common_root, find_images
from monai_attn.errors import DataError
from monai_attn.run.bundle import components, find_bundle, parse_override, read_bundle
from monai_attn.transforms import label_values

__all__ = ["CaseReport", "check_bundle", "inspect_cases"]

_CHECKS = [
    f"monai_attn.transforms.{name}" for name in ("SafeLoadImaged", "SafeChannelFirstd", "CheckImaged", "CheckLabeld")
]


class CaseReport(NamedTuple):
    """What there is to say of a case.

    Attributes:
        name: path of the image, relative to the folder of all images.
        shape: size of the image in voxels; empty, as the following, if the case cannot be used.
        spacing: size of a voxel in mm; empty for pictures.
        labels: the values of its labels; empty if it has none.
        warnings: what is odd about it.
        error: why it cannot be used.

    Example:
        >>> print(*CaseReport("a.nii", (35, 51, 35), (1, 1, 1), (0, 1, 2)).lines(width=5))
        a.nii  35 x 51 x 35     1 x 1 x 1           0-2           ok
    """

    name: str
    shape: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    labels: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()
    error: DataError | None = None

    def lines(self, width: int) -> list[str]:
        """The report as a row of a table, with names in a column of ``width``, and what is wrong below."""
        verdict = "cannot be used" if self.error else "warning" if self.warnings else "ok"
        columns = [" x ".join(f"{size:.4g}" for size in sizes) or "-" for sizes in (self.shape, self.spacing)]
        row = f"{self.name:<{width}}  {columns[0]:<15}  {columns[1]:<18}  {_ranges(self.labels):<12}  {verdict}"
        reasons = [*self.warnings, *(str(self.error).splitlines() if self.error else [])]
        return [row, *(f"    {reason}" for reason in reasons)]


def check_bundle(
    bundle: str,
    *,
    dataset_dir: str | None = None,
    images: Sequence[str] = (),
    sections: Sequence[str] = ("training", "validation"),
    configs: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Iterator[str]:
    """Load every case as a bundle does, and tell what is found.

    Args:
        bundle: folder of the bundle, or the name of one in ``./bundles``.
        dataset_dir: the data set; by default that of the bundle.
        images: look at these instead, as for inference: an image, a folder or a data set, or the files of one image.
        sections: sections of the data set.
        configs: configurations to take; by default ``train``, or ``inference`` for ``images``.
        overrides: overrides of entries, ``KEY=VALUE``.

    Yields:
        the lines of a table and of a summary.

    Raises:
        ConfigError: if the bundle or an override cannot be used.
        DataError: at once, if there are no cases; at the end, if some cannot be used.

    Example:
        ``for line in check_bundle("hippocampus_mri_scse_segmentation", dataset_dir="my_data"): print(line)``
    """
    entries = dict(map(parse_override, overrides)) | ({"dataset_dir": dataset_dir} if dataset_dir else {})
    parser = read_bundle(find_bundle(bundle), configs or ["inference" if images else "train"], entries)
    if images:
        source = ", ".join(images)
        parts = {"input": find_images(images[0] if len(images) == 1 else images)}
    else:
        source = str(parser.get_parsed_content("dataset_dir"))
        parts = {section: cases(source, section) for section in sorted(sections, key="training".__ne__)}
    items = [item for part in parts.values() for item in part]
    reports = []
    width = max(map(len, _names(items)))
    yield f"{'case':<{width}}  {'voxels':<15}  {'mm':<18}  {'labels':<12}"
    for report in inspect_cases(components(parser, _CHECKS), items):
        reports.append(report)
        yield from report.lines(width)
    yield _summary(reports)
    _require(source, reports, len(parts.get("training", ())))


def inspect_cases(steps: Sequence[Callable[[Any], Any]], items: Sequence[Mapping[Any, Any]]) -> Iterator[CaseReport]:
    """Load and check cases, one after the other, with a progress bar on a terminal.

    Args:
        steps: the transforms that do so.
        items: the cases, as :func:`monai_attn.data.cases` and :func:`monai_attn.data.find_images` give them.

    Yields:
        a report for each.

    Example:
        ``[report.name for report in inspect_cases([SafeLoadImaged("image")], find_images("scans")) if report.error]``
    """
    for name, item in tqdm(zip(_names(items), items), "check", len(items), leave=False, unit="case", disable=None):
        with _collected_warnings() as warnings:
            try:
                loaded: Any = item
                for step in steps:
                    loaded = step(loaded)
            except DataError as error:
                report = CaseReport(name, warnings=tuple(warnings), error=error)
            else:
                image, label = loaded["image"], loaded.get("label")
                spacing = tuple(image.pixdim.tolist()) if image.ndim == 4 else ()
                values = () if label is None or isinstance(label, str) else tuple(label_values(label))
                report = CaseReport(name, tuple(image.shape[1:]), spacing, values, tuple(warnings))
        yield report


def _names(items: Sequence[Mapping[Any, Any]]) -> list[str]:
    root = common_root(items)
    return [str(Path(ensure_tuple(item["image"])[0]).absolute().relative_to(root)) for item in items]


def _ranges(values: Sequence[float]) -> str:
    """Values in words, such as ``0-4 7``.

    Example:
        >>> _ranges([0, 1, 2, 4, 7, 8])
        '0-2 4 7-8'
    """
    runs: list[list[float]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return " ".join(f"{run[0]:g}" + (f"-{run[-1]:g}" if len(run) > 1 else "") for run in runs) or "-"


def _summary(reports: Sequence[CaseReport]) -> str:
    bad, odd = (sum(bool(getattr(report, what)) for report in reports) for what in ("error", "warnings"))
    return f"{len(reports)} cases: {len(reports) - bad} can be used, {bad} cannot; {odd} with warnings"


def _require(source: str, reports: Sequence[CaseReport], training: int) -> None:
    """Raise if a case cannot be used, or none of the first ``training`` cases has anything to learn from."""
    bad = [report.name for report in reports if report.error]
    if bad:
        more = " …" if len(bad) > 5 else ""
        raise DataError(source, f"{len(bad)} of {len(reports)} cases: {', '.join(bad[:5])}{more}", "see the table")
    if training and not any(max(report.labels, default=0) > 0 for report in reports[:training]):
        raise DataError(source, f"the labels of all its {training} cases for training are empty", "give other labels")


@contextmanager
def _collected_warnings() -> Iterator[list[str]]:
    """The warnings that this package logs meanwhile, which then do not go on the screen."""
    found: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("monai_attn")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
