# SPDX-License-Identifier: Apache-2.0
"""Data set checks and class weights."""

from __future__ import annotations

import json
import logging
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from logging.handlers import BufferingHandler
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from monai.config import NdarrayOrTensor
from monai.transforms import LoadImage, MapLabelValue, Orientation
from monai.utils import CommonKeys, convert_to_tensor, ensure_tuple
from tqdm import tqdm

from monai_attn.data.datalist import common_root, structure_names
from monai_attn.data.reader import PALETTE, CheckingReader
from monai_attn.errors import DataError
from monai_attn.files import first_of

__all__ = ["MANY_VALUES", "check_cases", "format_ranges", "label_values", "map_labels", "median_frequency_weights"]

_EXPECTED = ("spatial_dims", "channels", "values", "label_map")
MANY_VALUES = 150
"""More distinct values than label maps have."""


class _Report(NamedTuple):
    """Verdict on a case: ``"ok"``, ``"warning"`` or ``"cannot be used"``; its table columns and the reasons."""

    verdict: str
    columns: tuple[str, str, str] = ("-", "-", "-")
    reasons: Sequence[str] = ()
    shape: Sequence[int] = ()  # of the image, with channels
    values: Sequence[float] = ()  # of the label


def check_cases(
    steps: Sequence[Callable[[Any], Any]],
    sections: Mapping[str, Sequence[Mapping[str, Any]]],
    source: str,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Iterator[str]:
    """Load and report on all cases, with a progress bar.

    Args:
        steps: transforms that load and check the image and label of a case.
        sections: cases of each section, as :func:`monai_attn.data.cases` returns them.
        source: the data set.
        settings: entries of the bundle that depend on the data, such as ``structures``.

    Yields:
        the lines of a table and a summary, with the options that fit the data if the bundle's do not.

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
    expected = {key: value for step in steps for key, value in vars(step).items() if key in _EXPECTED}
    notes, options = _fit_labels(
        {value for report in reports for value in report.values}, {**expected, **settings}, structure_names(source)
    )
    channels = {report.shape[0] for report in reports if len(report.shape) - 1 == expected.get("spatial_dims")}
    if len(channels) == 1 and expected["channels"] not in (None, *channels):
        options["in_channels" if "in_channels" in settings else "network_def#in_channels"] = channels.pop()
    words = [str(value) if isinstance(value, dict) else json.dumps(value) for value in options.values()]
    fix = "add " + " ".join(f"--{key} {shlex.quote(word)}" for key, word in zip(options, words))
    yield from notes
    yield f"{len(reports)} cases: {len(reports) - len(bad)} can be used, {len(bad)} cannot; {odd} with warnings"
    if options:
        yield fix
    if bad:
        problem = f"{len(bad)} of {len(reports)} cases: {first_of(bad, 5)}"
        raise DataError(source, problem, fix if options else "see the table")
    training = [report for (section, _), report in zip(pairs, reports) if section == "training"]
    if training and not any(map(any, (report.values for report in training))):
        problem = f"the labels of all its {len(training)} cases for training are empty"
        raise DataError(source, problem, "give other labels")


def _check_case(steps: Sequence[Callable[[Any], Any]], item: Any) -> _Report:
    failure, case = None, item
    with _collected_records() as records:
        try:
            for step in steps:
                case = step(case)
        except DataError as error:
            failure = error
    warnings = [record.getMessage() for record in records]
    image, label = case[CommonKeys.IMAGE], case.get(CommonKeys.LABEL)
    shape = image.shape if isinstance(image, torch.Tensor) else ()
    label = map_labels(label, None) if isinstance(label, torch.Tensor) else None
    values = label_values(label) if label is not None and len(label) == 1 else []
    if failure is not None:
        reasons = [*warnings, *str(failure).splitlines()]
        return _Report("cannot be used", reasons=reasons, shape=shape, values=values)
    spacing = image.pixdim.tolist() if image.ndim == 4 else []
    voxels, size = (" x ".join(f"{length:.4g}" for length in lengths) or "-" for lengths in (shape[1:], spacing))
    return _Report("warning" if warnings else "ok", (voxels, size, format_ranges(values)), warnings, shape, values)


def _fit_labels(
    found: set[float], settings: Mapping[str, Any], named: Mapping[int, str]
) -> tuple[list[str], dict[str, Any]]:
    """Return notes on the values of labels, and the options that fit them if the bundle's do not."""
    structures, allowed = settings.get("structures"), settings.get("values")
    whole = all(value >= 0 and value % 1 == 0 for value in found) and 1 < len(found | {0}) <= MANY_VALUES
    if not (structures and allowed and whole) or settings.get("label_map"):
        return [], {}
    ignored = {0, settings.get("ignore_index")}
    expected = {*allowed} - ignored
    found = found - ignored if found - ignored and found - ignored <= expected else found - {0}
    classes = sorted({*named} if found <= {*named} else map(int, found))
    numbers = range(1, len(classes) + 1)
    label_map = {value: number for value, number in zip(classes, numbers) if value != number}
    unnamed = [f"structure {number}" for number in numbers]
    names = [*named.values()] if len(named) == len(classes) else unnamed
    notes: list[str] = []
    if len(structures) == settings["out_channels"] == 1:  # all foreground is one structure
        label_map = {value: 1 for value in classes if value not in allowed}
        if not label_map:
            return [], {}
        names = names if len(named) == 1 else structures
    elif found <= expected:
        if unused := [name for value, name in enumerate(structures, 1) if value in expected - found]:
            notes = [f"{len(unused)} of {len(structures)} structures in no label: {first_of(unused)}"]
        few = 2 * len(classes) <= len(expected) and not label_map  # else some just do not occur
        if not (few or named) or ({*classes} == expected and (label_map or names == unnamed)):
            return notes, {}
    options: dict[str, Any] = {"label_map": label_map} if label_map else {}
    if [name.lower() for name in names] != [name.lower() for name in structures]:
        options["structures"] = [re.sub(r"[#@$%]", "", name) for name in names]
        if "regions" in settings:
            notes.append(f"the regions {settings['regions']} do not apply")
            options |= {"regions": [[number] for number in numbers], "region_names": options["structures"]}
            options |= {"region_values": [*numbers]} if "region_values" in settings else {}
    return notes, options


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
    labels: Iterable[torch.Tensor | str],
    num_classes: int,
    *,
    spatial_dim: int | None = None,
    label_map: Mapping[Any, int] | None = None,
) -> torch.Tensor:
    r"""Return class weights (num_classes,) by median frequency balancing.

    With :math:`f_c` the pixels of class c divided by the pixels of all images in which c occurs, the weight is
    :math:`w_c = \mathrm{median}(f) / f_c`. A class that never occurs gets the weight 0, with a warning.

    Args:
        labels: label maps (1, *spatial) of class indices, or their files; volumes from files are reoriented to RAS.
        num_classes: number of classes, with the background.
        spatial_dim: axis along which a slice-wise network cuts volumes, whose slices then count as images. By default a
            volume is one image.
        label_map: see :class:`monai_attn.transforms.CheckLabeld`.

    Raises:
        DataError: if a label cannot be read, or has a value outside 0 … num_classes - 1.
        ValueError: if there are no labels.

    Example:
        >>> median_frequency_weights([torch.tensor([[[0, 0, 0, 1]]])], 2)
        tensor([0.6667, 2.0000])
    """
    none = torch.zeros(0, num_classes)
    counts = torch.cat([none, *(_count(label, num_classes, spatial_dim, label_map) for label in labels)])
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


def _count(label: torch.Tensor | str, num_classes: int, spatial_dim: int | None, label_map: Any) -> torch.Tensor:
    """Count the pixels of each class in each image of a label, (images, num_classes)."""
    volume = map_labels(_read(label) if isinstance(label, str) else label, label_map)
    images = volume if spatial_dim is None else volume.movedim(spatial_dim + 1, 0)
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= num_classes or (images % 1 != 0).any():
        problem = f"it has values from {low} to {high}, expected whole numbers from 0 to {num_classes - 1}"
        fix = "map its values (label_map), or name all structures (num_classes)"
        raise DataError(label if isinstance(label, str) else "a label", problem, fix)
    return torch.stack([torch.bincount(image.flatten().long(), minlength=num_classes) for image in images])


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


def map_labels(label: Any, label_map: Mapping[Any, int] | None) -> Any:
    """Map the values of a label map, keeping its type.

    Keys may be text, as in JSON. A gray picture of several equal channels becomes one of one channel.

    Example:
        >>> map_labels(torch.tensor([0, 255], dtype=torch.uint8), {255: 1})
        tensor([0, 1], dtype=torch.uint8)
    """
    getattr(label, "meta", {}).pop(PALETTE, None)  # its indices are the classes
    if label.ndim == 3 and len(label) > 1:
        gray = label[:-1] if len(label) == 4 or (len(label) == 2 and (label[1] == 255).all()) else label
        label = label[:1] if (gray == gray[:1]).all() else label
    if not label_map:
        return label
    return MapLabelValue([int(float(value)) for value in label_map], [*label_map.values()], dtype=label.dtype)(label)
