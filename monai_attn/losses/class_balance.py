# SPDX-License-Identifier: Apache-2.0
"""Losses for classes of very different size.

Roy, Navab, Wachinger: "Recalibrating Fully Convolutional Networks with Spatial and Channel 'Squeeze & Excitation'
Blocks", IEEE TMI 2019, https://arxiv.org/abs/1808.08127, Sec. III-B: logistic loss with median frequency balancing,
which is Eigen & Fergus 2015's, https://arxiv.org/abs/1411.4734, Sec. 6.3.2; and the weight on boundaries and the Dice
term of the authors' codes (QuickNAT, ReLayNet).

Differs from the authors' PyTorch code in: frequencies are not rounded by an integer division (which gives every class
more frequent than the median the weight 0), and softmax is applied once.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.transforms import LoadImage, Orientation
from torch import nn

from monai_attn.data import CheckingReader
from monai_attn.errors import DataError

__all__ = ["ClassBalancedLoss", "median_frequency_weights"]


def median_frequency_weights(
    labels: Iterable[torch.Tensor | str], num_classes: int, *, spatial_dim: int | None = None
) -> torch.Tensor:
    r"""Class weights by median frequency balancing.

    With :math:`f_c` the pixels of class c divided by the pixels of all images in which c occurs, the weight is
    :math:`w_c = \mathrm{median}(f) / f_c`. A class that never occurs gets the weight 0, with a warning.

    Args:
        labels: label maps (1, *spatial) of class indices, or their files, of which volumes are turned to RAS.
        num_classes: number of classes, with the background.
        spatial_dim: of volumes, the axis across which a slice-wise network cuts; each slice is then an image of its
            own. By default a volume is one image.

    Returns:
        the weights (num_classes,), float32.

    Raises:
        DataError: if a label cannot be read, or has a value outside 0 … num_classes - 1.
        ValueError: if there are no labels.

    Example:
        >>> median_frequency_weights([torch.tensor([[[0, 0, 0, 1]]])], 2)
        tensor([0.6667, 2.0000])
    """
    occurring = torch.zeros(num_classes, dtype=torch.int64)  # pixels of a class
    available = torch.zeros(num_classes, dtype=torch.int64)  # pixels of the images in which it occurs
    images = 0
    for label in labels:
        name = label if isinstance(label, str) else "a label"
        volume = _read(label) if isinstance(label, str) else label
        slices = volume[None] if spatial_dim is None else volume.movedim(spatial_dim + 1, 0)
        flat = slices.flatten(1).long()
        if flat.min() < 0 or flat.max() >= num_classes:
            raise DataError(
                name,
                f"it has values from {int(flat.min())} to {int(flat.max())}, expected 0 to {num_classes - 1}",
                "map its values, or name all structures (num_classes)",
            )
        offsets = torch.arange(len(flat))[:, None] * num_classes
        counts = torch.bincount((flat + offsets).flatten(), minlength=len(flat) * num_classes).view(-1, num_classes)
        occurring += counts.sum(0)
        available += (counts > 0).sum(0) * flat.shape[1]
        images += len(flat)
    if images == 0:
        raise ValueError("labels is empty; give the training labels.")
    present = occurring > 0
    if not present.all():
        absent = (~present).nonzero().flatten().tolist()
        warnings.warn(f"classes {absent} occur in no label; their weight is 0.", stacklevel=2)
    frequency = occurring[present] / available[present]
    weights = torch.zeros(num_classes)
    weights[present] = (frequency.quantile(0.5) / frequency).float()
    return weights


def _read(path: str) -> torch.Tensor:
    label = LoadImage(image_only=True, ensure_channel_first=True)(path, CheckingReader())
    if label.ndim == 4:
        label = Orientation(axcodes="RAS", labels=None)(label)
    return label.as_tensor()


class ClassBalancedLoss(nn.Module):
    r"""Cross-entropy with class weights, optionally heavier on boundaries, optionally with a Dice term.

    :math:`\frac{\sum_x w(x)\,\mathrm{CE}(x)}{\sum_x w(x)} + \lambda\,\mathrm{Dice}` with :math:`w(x) = w_{y(x)} + b` on
    pixels with a neighbour of another class and :math:`w(x) = w_{y(x)}` elsewhere. It is computed in float32.

    Args:
        weight: a weight for each class, such as :func:`median_frequency_weights`; by default 1.
        boundary_weight: :math:`b`; the paper has 0, the authors' PyTorch code of QuickNAT 2.
        lambda_dice: weight of the soft Dice loss over all classes; the paper's CE has 0, SD-Net and ReLayNet have 1.

    Raises:
        ValueError: if ``boundary_weight`` or ``lambda_dice`` is negative.

    Example:
        >>> ClassBalancedLoss()(torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8))
        tensor(1.3863)
    """

    weight: torch.Tensor | None

    def __init__(
        self, weight: torch.Tensor | None = None, *, boundary_weight: float = 0.0, lambda_dice: float = 0.0
    ) -> None:
        super().__init__()
        if boundary_weight < 0 or lambda_dice < 0:
            raise ValueError(
                f"boundary_weight and lambda_dice must not be negative, got {boundary_weight} and {lambda_dice}."
            )
        self.register_buffer("weight", weight)
        self.boundary_weight = boundary_weight
        self.lambda_dice = lambda_dice
        self.dice = DiceLoss(softmax=True, to_onehot_y=True)

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Map logits (B, C, *spatial) and class indices (B, 1, *spatial) to the loss, a scalar.

        Raises:
            ValueError: if the shapes do not fit.
        """
        if target.shape != (input.shape[0], 1, *input.shape[2:]):
            raise ValueError(
                f"target must have shape {(input.shape[0], 1, *input.shape[2:])} of class indices, got "
                f"{tuple(target.shape)}."
            )
        logits, classes = input.float(), target[:, 0].long()
        weights = torch.ones_like(classes, dtype=torch.float32)
        if self.weight is not None:
            weights = self.weight.to(logits.device)[classes]
        if self.boundary_weight:
            weights = weights + self.boundary_weight * _boundary(classes)
        entropy = F.cross_entropy(logits, classes, reduction="none")
        # where all pixels are of classes without weight there is nothing to learn, and nothing to divide by
        loss = (weights * entropy).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
        if self.lambda_dice:
            loss = loss + self.lambda_dice * self.dice(logits, target)
        return loss


def _boundary(classes: torch.Tensor) -> torch.Tensor:
    """Where a pixel of (B, *spatial) has a neighbour of another class along an axis."""
    edge = torch.zeros_like(classes, dtype=torch.bool)
    for axis in range(1, classes.ndim):
        differs = classes.narrow(axis, 1, classes.shape[axis] - 1) != classes.narrow(axis, 0, classes.shape[axis] - 1)
        for start in (0, 1):
            edge.narrow(axis, start, classes.shape[axis] - 1).logical_or_(differs)
    return edge
