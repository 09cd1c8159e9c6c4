# SPDX-License-Identifier: Apache-2.0
"""Distances between surfaces in millimetres.

MONAI's handlers of these metrics do not know the spacing and count voxels, which is another unit in every direction of
an anisotropic volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from ignite.exceptions import NotComputableError
from monai.handlers import HausdorffDistance, IgniteMetricHandler, SurfaceDistance
from monai.networks import one_hot
from monai.utils import MetricReduction

__all__ = ["SpacedHausdorffDistance", "SpacedSurfaceDistance"]


class _Spaced(IgniteMetricHandler):
    """Measures case by case, with the spacing that the label's metadata hold."""

    num_classes: int | None

    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """Take the predictions and the labels of a batch, lists of MetaTensors (C, *spatial)."""
        if len(output) != 2:
            raise NotComputableError(f"expected a pair of predictions and labels, got {len(output)} values.")
        for prediction, label in zip(*output):
            spacing = label.pixdim[: label.ndim - 1].tolist()
            self.metric_fn([self._masks(prediction)], [self._masks(label)], spacing=spacing)

    def _masks(self, segmentation: torch.Tensor) -> torch.Tensor:
        if self.num_classes is None:
            return segmentation
        return one_hot(segmentation, num_classes=self.num_classes, dim=0)


class SpacedHausdorffDistance(_Spaced, HausdorffDistance):
    """MONAI's ``HausdorffDistance`` in millimetres.

    A structure that only one of the two has is infinitely far (inf), one that neither has is left out (nan).

    Args:
        percentile: of the distances; 95 is usual, because the largest one is that of a single voxel.
        num_classes: number of classes of label maps (1, *spatial), with the background; ``None`` for masks.
        include_background: whether the first class, or the first mask, counts.
        reduction: see MONAI.
        output_transform: gives lists of predictions and labels, with metadata, from ``engine.state.output``.

    Example:
        ``SpacedHausdorffDistance(95, num_classes=3, output_transform=from_engine(["pred", "label"]))``
    """

    def __init__(
        self,
        percentile: float | None = None,
        num_classes: int | None = None,
        include_background: bool = False,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        output_transform: Callable = lambda x: x,
    ) -> None:
        self.num_classes = num_classes
        super().__init__(
            include_background, percentile=percentile, reduction=reduction, output_transform=output_transform
        )


class SpacedSurfaceDistance(_Spaced, SurfaceDistance):
    """MONAI's ``SurfaceDistance`` in millimetres, averaged over the surfaces of both by default.

    A structure that only one of the two has is infinitely far (inf), one that neither has is left out (nan).

    Args:
        num_classes: number of classes of label maps (1, *spatial), with the background; ``None`` for masks.
        include_background: whether the first class, or the first mask, counts.
        symmetric: whether distances from the label to the prediction count as well as those the other way.
        reduction: see MONAI.
        output_transform: gives lists of predictions and labels, with metadata, from ``engine.state.output``.

    Example:
        ``SpacedSurfaceDistance(num_classes=3, output_transform=from_engine(["pred", "label"]))``
    """

    def __init__(
        self,
        num_classes: int | None = None,
        include_background: bool = False,
        symmetric: bool = True,
        reduction: MetricReduction | str = MetricReduction.MEAN,
        output_transform: Callable = lambda x: x,
    ) -> None:
        self.num_classes = num_classes
        super().__init__(include_background, symmetric, reduction=reduction, output_transform=output_transform)
