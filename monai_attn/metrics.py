# SPDX-License-Identifier: Apache-2.0
"""ISIC 2017 metrics, and volumes of label maps.

The challenge, part 1: Codella et al. 2017, https://arxiv.org/abs/1710.05006. Its metrics are computed per image and
then averaged, whereas MONAI's ``ConfusionMatrixMetric`` by default pools all images, which favors large lesions, and
drops images without a lesion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric, compute_confusion_matrix_metric, get_confusion_matrix
from monai.utils import MetaKeys

__all__ = ["ISICSegmentationMetric", "measure"]


class ISICSegmentationMetric(CumulativeIterationMetric):
    """Jaccard, Dice, accuracy, sensitivity and specificity of binary masks (ISIC).

    With the counts of true and false positive and negative pixels of one image:

    =========== =========================== =========== ===================
    jaccard     TP / (TP + FP + FN)         sensitivity TP / (TP + FN)
    dice        2 TP / (2 TP + FP + FN)     specificity TN / (TN + FP)
    accuracy    (TP + TN) / pixels
    =========== =========================== =========== ===================

    The challenge scores masks at the resolution of the image file and ranks by the Jaccard index.

    A ratio whose denominator is 0, such as the Jaccard index of two empty masks, is 1, as in the official scorer.

    Attributes:
        names: names of the five metrics, in order.

    Raises:
        ValueError: when called, if a mask is not binary, has more than one channel, or
            prediction and truth differ in shape; when aggregated, if there was no image yet.

    Example:
        >>> metric = ISICSegmentationMetric()
        >>> truth = torch.tensor([1, 1, 0, 0]).reshape(1, 1, 2, 2)
        >>> _ = metric(torch.tensor([1, 0, 0, 0]).reshape(1, 1, 2, 2), truth)
        >>> dict(zip(metric.names, metric.aggregate().tolist()))["jaccard"]
        0.5
    """

    names = ("jaccard", "dice", "accuracy", "sensitivity", "specificity")

    def _compute_tensor(self, y_pred: torch.Tensor, y: torch.Tensor | None = None, **_kwargs: Any) -> torch.Tensor:
        """Return the metrics (B, 5) of binary masks (B, 1, *spatial)."""
        if y is None:
            raise ValueError("y, the true mask, is missing.")
        for name, mask in (("y_pred", y_pred), ("y", y)):
            if mask.ndim < 3 or mask.shape[1] != 1:
                raise ValueError(f"{name} must be of shape (B, 1, *spatial), got {tuple(mask.shape)}.")
            if not ((mask == 0) | (mask == 1)).all():
                raise ValueError(f"{name} must hold 0 and 1 only, its values go from {mask.min()} to {mask.max()}.")
        counts = get_confusion_matrix(y_pred.to(torch.uint8), y.to(torch.uint8)).double()[:, 0]
        names = ("threat score", "f1 score", "accuracy", "sensitivity", "specificity")
        return torch.stack([compute_confusion_matrix_metric(name, counts).nan_to_num(1.0) for name in names], dim=1)

    def aggregate(self) -> torch.Tensor:
        """Return the means over all images, (5,), in the order of ``names``."""
        scores = self.get_buffer()
        if not isinstance(scores, torch.Tensor):
            raise ValueError("there is nothing to average; call the metric with masks first.")
        return scores.mean(dim=0)


def measure(label_map: MetaTensor, class_names: Sequence[str] = ()) -> dict[str, Any]:
    """Return the volumes of a label map, with warnings.

    Args:
        label_map: the labels (1, *spatial), or (*spatial) with the metadata of a file, on the grid of the image file.
        class_names: names of the classes 1, 2, …

    Returns:
        ``values`` by class, their ``unit`` (ml, or pixels for 2D images), and ``warnings``: the mask is empty, or
        structures are cut off by the border of the image. Structures that run from one border to the opposite one do
        not count.

    Example:
        >>> measure(MetaTensor(torch.ones(1, 10, 10, 10)), ["liver"])["values"]
        {'liver': 1.0}
    """
    labels = label_map.as_tensor().to("cpu", torch.int32)
    spatial_shape = label_map.meta.get(MetaKeys.SPATIAL_SHAPE, labels.shape[1:])
    labels = labels[0] if labels.ndim > len(spatial_shape) else labels
    names = list(class_names) or [f"class {index}" for index in range(1, int(labels.max()) + 1)]
    labels = labels.clamp(max=1) if len(names) == 1 else labels  # pictures of a single structure hold 255
    counts = torch.bincount(labels.flatten(), minlength=len(names) + 1).tolist()
    ml = abs(float(torch.linalg.det(label_map.affine[:3, :3]))) / 1000
    unit, size = ("ml", ml) if labels.ndim == 3 else ("pixels", 1)
    warnings = [] if any(counts[1:]) else ["the mask is empty"]
    cut = [name for index, name in enumerate(names, 1) if counts[index] and _is_cut(labels, index)]
    warnings += [f"at the border of the image: {', '.join(cut)}"] if cut else []
    values = dict(zip(names, (round(size * count, 3) for count in counts[1:])))
    return {"unit": unit, "values": values, "warnings": warnings}


def _is_cut(labels: torch.Tensor, index: int) -> bool:
    axes = [axis for axis, length in enumerate(labels.shape) if length > 1]
    ends = [[bool((labels.select(axis, end) == index).any()) for end in (0, -1)] for axis in axes]
    through = [all(pair) for pair in ends]
    return any(map(any, ends)) and (all(through) or not any(through))
