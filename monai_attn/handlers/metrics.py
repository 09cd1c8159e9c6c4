# SPDX-License-Identifier: Apache-2.0
"""Metrics of an evaluator, and a table of them per case and per structure that a person can read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.handlers import IgniteMetricHandler, MetricsSaver
from monai.handlers.utils import write_metrics_reports
from monai.utils import CommonKeys, string_list_all_gather

from monai_attn.data.datalist import case_name
from monai_attn.files import csv_cell
from monai_attn.metrics import ISICSegmentationMetric

__all__ = ["CaseMetricsSaver", "ISICSegmentation"]


def _image_metadata(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [case[CommonKeys.IMAGE].meta for case in batch]


class CaseMetricsSaver(MetricsSaver):
    """MONAI's ``MetricsSaver`` with the names of the cases and of the structures.

    For every metric it writes ``<metric>_raw.csv``, a line for each case and a column for each structure, and
    ``<metric>_summary.csv``, a line for each structure.

    Args:
        save_dir: folder to write to.
        structures: names of the structures, in the order of the metric's channels; numbers are used where the metric
            has another number of channels.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[CaseMetricsSaver("out", ["anterior", "posterior"])])``
    """

    def __init__(self, save_dir: str, structures: Sequence[str]) -> None:
        super().__init__(save_dir, metrics="*", metric_details="*", batch_transform=_image_metadata, summary_ops="*")
        self.structures = list(structures)

    def __call__(self, engine: Engine) -> None:
        """Write the tables of the finished epoch, on the first process only."""
        paths = string_list_all_gather(self._filenames) if idist.get_world_size() > 1 else self._filenames
        if idist.get_rank() != self.save_rank:
            return
        state: Any = engine.state
        write_metrics_reports(
            save_dir=self.save_dir,
            images=[csv_cell(case_name(path)) for path in paths],
            metrics=state.metrics,
            metric_details=state.metric_details,
            summary_ops=self.summary_ops,
            class_labels=self._names(state.metric_details),
        )

    def _names(self, details: dict[str, torch.Tensor]) -> list[str]:
        channels = {values.shape[-1] for values in details.values()}
        if channels <= {len(self.structures)}:
            return self.structures
        return [f"class {index}" for index in range(1, max(channels) + 1)]


class ISICSegmentation(IgniteMetricHandler):
    """:class:`monai_attn.metrics.ISICSegmentationMetric` as a handler of an evaluator.

    The metric itself is the Jaccard index, by which the challenge ranks. The other four numbers stand beside it in
    ``engine.state.metrics`` under the same name with their own ending, and so do the numbers of each image.

    Args:
        output_transform: gives predicted and true binary masks from ``engine.state.output``.
        zero_division: see the metric.

    Example:
        ``{"val_jaccard": ISICSegmentation(from_engine(["pred", "label"]))}`` gives ``val_jaccard``, ``val_dice``,
        ``val_accuracy``, ``val_sensitivity`` and ``val_specificity``.
    """

    def __init__(self, output_transform: Callable = lambda x: x, zero_division: str = "one") -> None:
        super().__init__(ISICSegmentationMetric(zero_division), output_transform=output_transform, save_details=False)

    def compute(self) -> float:
        """Average over the images; returns the Jaccard index and records all five numbers."""
        means = super().compute()
        if self._engine is None or self._name is None:
            raise RuntimeError("attach the handler to an engine first.")
        state: Any = self._engine.state
        if not hasattr(state, "metric_details"):
            state.metric_details = {}
        names = [self._name.replace("jaccard", name) for name in ISICSegmentationMetric.names]
        for index, name in enumerate(names):
            state.metrics[name] = float(means[index])
            state.metric_details[name] = self.metric_fn.get_buffer()[:, index : index + 1]
        return float(means[0])
