# SPDX-License-Identifier: Apache-2.0
"""Metrics for evaluators, with distances in mm, and their tables."""

from __future__ import annotations

import csv
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from monai.handlers import HausdorffDistance, IgniteMetricHandler, MeanDice, MetricsSaver, SurfaceDistance
from monai.handlers.utils import write_metrics_reports
from monai.networks import one_hot
from monai.utils import CommonKeys, ImageMetaKey, string_list_all_gather

from monai_attn.data.datalist import case_names
from monai_attn.files import atomic_write, csv_cell
from monai_attn.metrics import ISICSegmentationMetric

__all__ = ["CaseMetricsSaver", "ISICSegmentation", "MeanDiceOrNaN", "SpacedHausdorffDistance", "SpacedSurfaceDistance"]

_LOGGER = logging.getLogger(__name__)


def _image_metadata(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [case[CommonKeys.IMAGE].meta for case in batch]


class CaseMetricsSaver(MetricsSaver):
    """Save metrics as CSV by case and structure.

    ``<metric>_raw.csv`` has a row per case and a column per structure, ``<metric>_summary.csv`` a row per structure.
    Cases without the structure are NaN; the summary leaves them out and counts them as ``nans``. The ``structures`` are
    in channel order; unless their number fits, classes are numbered.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[CaseMetricsSaver("out", ["anterior", "posterior"])])``
    """

    def __init__(self, save_dir: str, structures: Sequence[str]) -> None:
        super().__init__(save_dir, metrics="*", metric_details="*", batch_transform=_image_metadata, summary_ops="*")
        self.structures = list(structures)

    def __call__(self, engine: Engine) -> None:
        """Write the tables on the first process."""
        paths = string_list_all_gather(self._filenames) if idist.get_world_size() > 1 else self._filenames
        if idist.get_rank() != self.save_rank:
            return
        state: Any = engine.state
        names = case_names(paths)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of NaNs alone is NaN, as it should be
            write_metrics_reports(
                save_dir=self.save_dir,
                images=[csv_cell(names[path]) for path in paths],
                metrics=state.metrics,
                metric_details=state.metric_details,
                summary_ops=self.summary_ops,
                class_labels=[csv_cell(name) for name in self._names(state.metric_details)],
            )
        for name in state.metric_details:
            self._count_nans(Path(self.save_dir) / f"{name}_summary.csv", len(paths))

    def _count_nans(self, path: Path, cases: int) -> None:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        column = header.index("notnans")
        with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow([*header, "nans"])
            table.writerows([*row, f"{cases - float(row[column]):.4f}"] for row in rows)

    def _names(self, details: dict[str, torch.Tensor]) -> list[str]:
        channels = {values.shape[-1] for values in details.values()}
        if channels <= {len(self.structures)}:
            return self.structures
        return [f"class {index}" for index in range(1, max(channels) + 1)]


def by_structure(scores: torch.Tensor, structures: Sequence[str]) -> dict[str, float]:
    """Return the mean scores, over cases, of named structures.

    Args:
        scores: scores (cases, structures), such as ``engine.state.metric_details`` holds; NaN is left out.
        structures: their names; unless their number fits, classes are numbered.

    Example:
        >>> by_structure(torch.tensor([[0.5], [1.0]]), ["liver"])
        {'liver': 0.75}
    """
    means = scores.nanmean(0).tolist()
    names = structures if len(structures) == len(means) else [f"class {index}" for index in range(1, len(means) + 1)]
    return dict(zip(names, means))


class _OrNaN(IgniteMetricHandler):
    """Return NaN rather than MONAI's 0 where no case has a structure."""

    def compute(self) -> Any:
        """Return the mean over structures, then over cases, ignoring NaN."""
        mean = super().compute()
        scores = self.metric_fn.get_buffer()
        return math.nan if isinstance(scores, torch.Tensor) and scores.isnan().all() else mean


class _ByCase(_OrNaN):
    """Tell the scores of the cases so far to other handlers."""

    def update(self, output: Sequence[Any]) -> None:
        """Add a case, and set ``engine.state.case_scores`` if this is the key metric."""
        super().update(output)
        state: Any = self._engine.state if self._engine is not None else None
        if state is not None and self._name == getattr(state, "key_metric_name", None):
            buffers: Any = self.metric_fn._buffers  # those of this process; get_buffer() would gather all
            state.case_scores = buffers[0], getattr(self.metric_fn, "names", ())


class MeanDiceOrNaN(_ByCase, MeanDice):
    """Compute ``MeanDice``, with NaN instead of 0 without structures.

    It takes the arguments of MONAI's ``MeanDice``.

    Example:
        ``{"val_mean_dice": MeanDiceOrNaN(include_background=False, output_transform=from_engine(["pred", "label"]))}``
    """


class ISICSegmentation(_ByCase):
    """Compute the five ISIC segmentation metrics of binary masks.

    The result is the Jaccard index, which ranks the challenge; ``engine.state.metrics`` also gets the other four, and
    ``metric_details`` the values of every image. See :class:`monai_attn.metrics.ISICSegmentationMetric`.

    Example:
        ``{"val_jaccard": ISICSegmentation(from_engine(["pred", "label"]))}`` gives ``val_jaccard``, ``val_dice``,
        ``val_accuracy``, ``val_sensitivity`` and ``val_specificity``.
    """

    def __init__(self, output_transform: Callable = lambda x: x) -> None:
        super().__init__(ISICSegmentationMetric(), output_transform=output_transform, save_details=False)

    def compute(self) -> float:
        """Return the mean Jaccard index and record all five metrics."""
        means = super().compute()
        if self._engine is None or self._name is None:
            raise RuntimeError("attach the handler to an engine first.")
        state: Any = self._engine.state
        details = vars(state).setdefault("metric_details", {})
        prefix = self._name.removesuffix("jaccard") if "jaccard" in self._name else f"{self._name}_"
        names = [prefix + name for name in ISICSegmentationMetric.names]
        for index, name in enumerate(names):
            state.metrics[name] = float(means[index])
            details[name] = self.metric_fn.get_buffer()[:, index : index + 1]
        return float(means[0])


class _Spaced(_OrNaN):
    """Measure distances with the label's spacing, case by case; they are inf if one of the two lacks a structure."""

    num_classes: int | None

    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """Add predictions and labels, lists of MetaTensors (C, *spatial)."""
        if len(output) != 2:
            raise NotComputableError(f"expected a pair of predictions and labels, got {len(output)} values.")
        for prediction, label in zip(*output):
            spacing = label.pixdim[: label.ndim - 1].tolist()
            masks = [self._masks(prediction), self._masks(label)]
            distances: Any = self.metric_fn(masks[:1], masks[1:], spacing=spacing)
            there = torch.stack([mask.flatten(1).bool().any(1)[-distances.shape[1] :] for mask in masks])
            distances[:, there.any(0) & ~there.all(0)] = math.inf  # the buffer's rows; percentiles of inf are NaN
            if distances.isinf().any():
                name = label.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "a case")
                _LOGGER.warning("%s: structures only in the label or only in the prediction; distance inf", name)

    def _masks(self, segmentation: torch.Tensor) -> torch.Tensor:
        if self.num_classes is None:
            return segmentation
        return one_hot(segmentation, num_classes=self.num_classes, dim=0)


class SpacedHausdorffDistance(_Spaced, HausdorffDistance):
    """Compute the Hausdorff distance in millimeters.

    A structure missing from one of the two gives inf, one missing from both NaN, which is left out.

    Args:
        percentile: percentile of the distances, commonly 95; the maximum by default.
        num_classes: number of classes of label maps (1, *spatial), with the background; ``None`` for masks.
        include_background: whether the first class, or the first mask, counts.
        output_transform: see MONAI's ``HausdorffDistance``; labels need metadata.

    Example:
        ``SpacedHausdorffDistance(percentile=95, num_classes=3, output_transform=from_engine(["pred", "label"]))``
    """

    def __init__(
        self,
        *,
        percentile: float | None = None,
        num_classes: int | None = None,
        include_background: bool = False,
        output_transform: Callable = lambda x: x,
    ) -> None:
        self.num_classes = num_classes
        super().__init__(include_background, percentile=percentile, output_transform=output_transform)


class SpacedSurfaceDistance(_Spaced, SurfaceDistance):
    """Compute the mean surface distance in millimeters, symmetric by default.

    Args:
        symmetric: whether distances from the label to the prediction count as well.
        num_classes, include_background, output_transform: see :class:`SpacedHausdorffDistance`.

    Example:
        ``SpacedSurfaceDistance(num_classes=3, output_transform=from_engine(["pred", "label"]))``
    """

    def __init__(
        self,
        *,
        num_classes: int | None = None,
        include_background: bool = False,
        symmetric: bool = True,
        output_transform: Callable = lambda x: x,
    ) -> None:
        self.num_classes = num_classes
        super().__init__(include_background, symmetric, output_transform=output_transform)
