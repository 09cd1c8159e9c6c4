# SPDX-License-Identifier: Apache-2.0
"""Data set checks and class weights."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import groupby
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.config import NdarrayOrTensor
from monai.transforms import LoadImage, Orientation
from monai.utils import CommonKeys, convert_to_tensor, ensure_tuple
from tqdm import tqdm

from monai_attn.data.datalist import common_root
from monai_attn.data.layouts import LISTINGS, read_listing
from monai_attn.data.reader import CheckingReader
from monai_attn.errors import DataError

__all__ = ["check_cases", "format_ranges", "label_values", "median_frequency_weights"]
__all__ += ["structure_names"]


class _Report(NamedTuple):
    """Verdict on a case: ``"ok"``, ``"warning"`` or ``"cannot be used"``; its table columns and the reasons."""

    verdict: str
    columns: tuple[str, str, str] = ("-", "-", "-")
    reasons: Sequence[str] = ()
    empty: bool = True


def check_cases(
    steps: Sequence[Callable[[Any], Any]], sections: Mapping[str, Sequence[Mapping[str, Any]]], source: str
) -> Iterator[str]:
    """Load and report on all cases, with a progress bar.

    Args:
        steps: transforms that load and check the image and label of a case.
        sections: cases of each section, as :func:`monai_attn.data.cases` returns them.
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
    return _Report("warning" if warnings else "ok", (voxels, size, format_ranges(values)), warnings, not any(values))


def structure_names(folder: Path) -> dict[int, str]:
    """Return the names of label values in a ``dataset.json``.

    Example:
        ``structure_names(Path("data/hippocampus"))`` is ``{1: "anterior", 2: "posterior"}``.
    """
    listing = folder / LISTINGS[0]
    labels = read_listing(listing).get("labels") if listing.is_file() else None
    pairs = labels.items() if isinstance(labels, dict) else ()
    try:  # the Decathlon has names by values, nnU-Net values by names
        named = dict((int(a), str(b)) if str(a).isdigit() else (int(b), str(a)) for a, b in pairs)
    except (TypeError, ValueError):  # regions
        return {}
    return {value: named[value] for value in sorted(named) if value > 0}


def format_ranges(values: Sequence[float]) -> str:
    """Shorten ascending values to ranges.

    Example:
        >>> format_ranges([0, 1, 2, 4, 7, 8])
        '0-2 4 7-8'
    """
    runs = [[value for _, value in run] for _, run in groupby(enumerate(values), lambda pair: pair[1] - pair[0])]
    return " ".join(f"{run[0]:g}" + (f"-{run[-1]:g}" if len(run) > 1 else "") for run in runs) or "-"


@contextmanager
def _collected_records() -> Iterator[list[logging.LogRecord]]:
    """Collect this package's warnings instead of printing them."""
    logger, handler = logging.getLogger("monai_attn"), BufferingHandler(sys.maxsize)
    handler.setLevel(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def median_frequency_weights(
    labels: Iterable[torch.Tensor | str], num_classes: int, *, spatial_dim: int | None = None
) -> torch.Tensor:
    r"""Return class weights (num_classes,) by median frequency balancing.

    With :math:`f_c` the pixels of class c divided by the pixels of all images in which c occurs, the weight is
    :math:`w_c = \mathrm{median}(f) / f_c`. A class that never occurs gets the weight 0, with a warning.

    Args:
        labels: label maps (1, *spatial) of class indices, or their files; volumes from files are reoriented to RAS.
        num_classes: number of classes, with the background.
        spatial_dim: axis along which a slice-wise network cuts volumes, whose slices then count as images. By default a
            volume is one image.

    Raises:
        DataError: if a label cannot be read, or has a value outside 0 … num_classes - 1.
        ValueError: if there are no labels.

    Example:
        >>> median_frequency_weights([torch.tensor([[[0, 0, 0, 1]]])], 2)
        tensor([0.6667, 2.0000])
    """
    counts = torch.cat([_count(label, num_classes, spatial_dim) for label in labels] or [torch.zeros(0, num_classes)])
    if len(counts) == 0:
        raise ValueError("labels is empty; give the training labels.")
    occurring = counts.sum(0)
    available = ((counts > 0) * counts.sum(1, keepdim=True)).sum(0)  # pixels of the images in which a class occurs
    present = occurring > 0
    if not present.all():
        absent = (~present).nonzero().flatten().tolist()
        warnings.warn(f"classes {absent} occur in no label; their weight is 0.", stacklevel=2)
    frequency = occurring[present] / available[present]
    weights = torch.zeros(num_classes)
    weights[present] = (frequency.quantile(0.5) / frequency).float()
    return weights


def _count(label: torch.Tensor | str, num_classes: int, spatial_dim: int | None) -> torch.Tensor:
    """Count the pixels of each class in each image of a label, (images, num_classes)."""
    volume = _read(label) if isinstance(label, str) else label
    images = (volume if spatial_dim is None else volume.movedim(spatial_dim + 1, 0)).long()
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            label if isinstance(label, str) else "a label",
            f"it has values from {low} to {high}, expected 0 to {num_classes - 1}",
            "map its values, or name all structures (num_classes)",
        )
    return torch.stack([torch.bincount(image.flatten(), minlength=num_classes) for image in images])


def _read(path: str) -> torch.Tensor:
    label = LoadImage(image_only=True, ensure_channel_first=True)(path, CheckingReader())
    if label.ndim == 4:
        label = Orientation(axcodes="RAS", labels=None)(label)
    return label.as_tensor()


def label_values(label: NdarrayOrTensor) -> list[float]:
    """Return the distinct values of a label map, ascending.

    NaN is returned once per voxel.

    Example:
        >>> label_values(torch.tensor([[2.0, 0.0, 2.0]]))
        [0, 2]
    """
    voxels = convert_to_tensor(label, track_meta=False).flatten()
    as_bytes = voxels.to(torch.uint8)
    if not torch.equal(as_bytes.to(voxels.dtype), voxels):
        return voxels.unique().tolist()
    return torch.bincount(as_bytes).nonzero().flatten().tolist()  # ten times as fast as sorting
