# SPDX-License-Identifier: Apache-2.0
"""Metrics of the ISIC 2017 challenge, part 1.

Codella et al. 2017, https://arxiv.org/abs/1710.05006. They are computed per image and then averaged, whereas MONAI's
``ConfusionMatrixMetric`` by default pools all images, which favors large lesions, and drops images without a lesion.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.metrics import CumulativeIterationMetric, get_confusion_matrix
from monai.utils import look_up_option

__all__ = ["ISICSegmentationMetric"]


class ISICSegmentationMetric(CumulativeIterationMetric):
    """Jaccard, Dice, accuracy, sensitivity and specificity of binary masks (ISIC).

    With the counts of true and false positive and negative pixels of one image:

    =========== =========================== =========== ===================
    jaccard     TP / (TP + FP + FN)         sensitivity TP / (TP + FN)
    dice        2 TP / (2 TP + FP + FN)     specificity TN / (TN + FP)
    accuracy    (TP + TN) / pixels
    =========== =========================== =========== ===================

    The challenge scores masks at the resolution of the image file and ranks by the Jaccard index.

    Args:
        zero_division: value of a ratio whose denominator is 0, such as the Jaccard index of two empty masks: ``"one"``
            as in the official scorer, ``"zero"``, or ``"nan"`` to leave the image out of this mean.

    Attributes:
        names: names of the five metrics, in order.

    Raises:
        ValueError: if ``zero_division`` is unknown; when called, if a mask is not binary, has more than one channel, or
            prediction and truth differ in shape; when aggregated, if there was no image yet.

    Example:
        >>> metric = ISICSegmentationMetric()
        >>> truth = torch.tensor([1, 1, 0, 0]).reshape(1, 1, 2, 2)
        >>> _ = metric(torch.tensor([1, 0, 0, 0]).reshape(1, 1, 2, 2), truth)
        >>> dict(zip(metric.names, metric.aggregate().tolist()))["jaccard"]
        0.5
    """

    names = ("jaccard", "dice", "accuracy", "sensitivity", "specificity")

    def __init__(self, zero_division: str = "one") -> None:
        super().__init__()
        self.fallback = look_up_option(zero_division, {"one": 1.0, "nan": float("nan"), "zero": 0.0})

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **_kwargs: Any) -> torch.Tensor:
        """Return the metrics (B, 5) of binary masks (B, 1, *spatial)."""
        if y is None:
            raise ValueError("y, the true mask, is missing.")
        for name, mask in (("y_pred", y_pred), ("y", y)):
            if mask.ndim < 3 or mask.shape[1] != 1:
                raise ValueError(f"{name} must be of shape (B, 1, *spatial), got {tuple(mask.shape)}.")
            if not ((mask == 0) | (mask == 1)).all():
                raise ValueError(
                    f"{name} must hold 0 and 1 only, its values go from {mask.min()} to {mask.max()}; "
                    "make it binary with AsDiscrete(threshold=...)."
                )
        counts = get_confusion_matrix(y_pred.to(torch.uint8), y.to(torch.uint8)).double()
        tp, fp, tn, fn = counts[:, 0].unbind(dim=1)
        return torch.stack(
            [
                self._ratio(tp, tp + fp + fn),
                self._ratio(2 * tp, 2 * tp + fp + fn),
                self._ratio(tp + tn, tp + fp + tn + fn),
                self._ratio(tp, tp + fn),
                self._ratio(tn, tn + fp),
            ],
            dim=1,
        )

    def _ratio(self, part: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        return torch.where(whole > 0, part / whole, self.fallback)

    def aggregate(self) -> torch.Tensor:
        """Return the means over all images, NaN without any value."""
        scores = self.get_buffer()
        if not isinstance(scores, torch.Tensor):
            raise ValueError("there is nothing to average; call the metric with masks first.")
        return scores.nanmean(dim=0)
