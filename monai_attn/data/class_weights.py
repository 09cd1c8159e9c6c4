# SPDX-License-Identifier: Apache-2.0
"""Class weights from the labels of a data set.

Roy, Navab, Wachinger: "Recalibrating Fully Convolutional Networks with Spatial and Channel 'Squeeze & Excitation'
Blocks", IEEE TMI 2019, https://arxiv.org/abs/1808.08127, Sec. III-B: median frequency balancing, which is Eigen &
Fergus 2015's, https://arxiv.org/abs/1411.4734, Sec. 6.3.2.

Differs from the authors' PyTorch code in: frequencies are not rounded by an integer division, which gives every class
more frequent than the median the weight 0.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from monai.transforms import LoadImage, Orientation

from monai_attn.data.reader import CheckingReader
from monai_attn.errors import DataError

__all__ = ["median_frequency_weights"]


def median_frequency_weights(
    labels: Iterable[torch.Tensor | str], num_classes: int, *, spatial_dim: int | None = None
) -> torch.Tensor:
    r"""Compute class weights by median frequency balancing.

    With :math:`f_c` the pixels of class c divided by the pixels of all images in which c occurs, the weight is
    :math:`w_c = \mathrm{median}(f) / f_c`. A class that never occurs gets the weight 0, with a warning.

    Args:
        labels: label maps (1, *spatial) of class indices, or their files, of which volumes are turned to RAS.
        num_classes: number of classes, with the background.
        spatial_dim: of volumes, the axis across which a slice-wise network cuts; each slice is then an image of its
            own. By default a volume is one image.

    Returns:
        the weights (num_classes,), float32, for :class:`monai_attn.losses.ClassBalancedLoss`.

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
