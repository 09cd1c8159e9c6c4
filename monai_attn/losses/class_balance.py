# SPDX-License-Identifier: Apache-2.0
"""Cross-entropy weighted by class and boundary, and cropped losses.

Roy et al. (scSE), IEEE TMI 2019, https://arxiv.org/abs/1808.08127, Sec. III-B: logistic loss with class weights. The
boundary weight and the Dice term are those of the authors' codes (QuickNAT, ReLayNet).

Differs from the authors' PyTorch code in: softmax is applied once.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.networks import one_hot
from torch import nn

from monai_attn.blocks.autofocus import crop_border
from monai_attn.losses.consistency import as_float

__all__ = ["ClassBalancedLoss", "CropBorderLoss"]


class ClassBalancedLoss(nn.Module):
    r"""Cross-entropy with class and boundary weights, and Dice.

    :math:`\frac{\sum_x w(x)\,\mathrm{CE}(x)}{\sum_x w(x)} + \lambda\,\mathrm{Dice}` with :math:`w(x) = w_{y(x)} + b` on
    pixels with a neighbor of another class and :math:`w(x) = w_{y(x)}` elsewhere. It is computed in float32.

    Args:
        weight: a weight for each class, such as :func:`monai_attn.data.median_frequency_weights`; by default 1.
        boundary_weight: :math:`b`; the paper has 0, ReLayNet 10, the authors' PyTorch code of QuickNAT 2.
        lambda_dice: weight of the soft Dice loss over all classes; the paper's CE has 0, SD-Net and ReLayNet have 1.
        ignore_index: class of pixels to ignore, such as those without annotation; PyTorch's by default.

    Raises:
        ValueError: if ``boundary_weight`` or ``lambda_dice`` is negative, or, when called, if the shapes do not fit.

    Example:
        >>> ClassBalancedLoss()(torch.zeros(1, 4, 8, 8), torch.zeros(1, 1, 8, 8))
        tensor(1.3863)
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor | None = None,
        *,
        boundary_weight: float = 0.0,
        lambda_dice: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__()
        if boundary_weight < 0 or lambda_dice < 0:
            raise ValueError(f"{boundary_weight=} and {lambda_dice=} must not be negative.")
        self.register_buffer("weight", weight)
        self.boundary_weight = boundary_weight
        self.lambda_dice = lambda_dice
        self.ignore_index = ignore_index
        self.dice = DiceLoss()

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Map logits (B, C, *spatial) and class indices (B, 1, *spatial) to the loss, a scalar."""
        shape = (input.shape[0], 1, *input.shape[2:])
        if target.shape != shape:
            raise ValueError(f"target must have shape {shape} of class indices, got {tuple(target.shape)}.")
        if self.weight is not None and len(self.weight) != input.shape[1]:
            raise ValueError(f"weight must have {input.shape[1]} values, one for each class, got {len(self.weight)}.")
        logits, classes = as_float(input), as_float(target)[:, 0].long()
        counts = classes != self.ignore_index
        classes = classes * counts
        weights = self._weights(classes, counts)
        entropy = F.cross_entropy(logits, classes, reduction="none")
        # where all pixels are of classes without weight there is nothing to learn, and nothing to divide by
        loss = (weights * entropy).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)
        if self.lambda_dice:
            probabilities, truth = logits.softmax(1), one_hot(classes[:, None], logits.shape[1])
            loss = loss + self.lambda_dice * self.dice(probabilities * counts[:, None], truth * counts[:, None])
        return loss

    def _weights(self, classes: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return a weight for every pixel of (B, *spatial), 0 where it does not count."""
        weights = torch.ones_like(classes) if self.weight is None else self.weight.to(classes.device)[classes]
        if self.boundary_weight:
            weights = weights + self.boundary_weight * _boundary(classes, counts)
        return weights.float() * counts


def _boundary(classes: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Find the pixels of (B, *spatial) with a neighbor of another class along an axis, among those that count."""
    edge = torch.zeros_like(classes, dtype=torch.bool)
    for axis in range(1, classes.ndim):
        pairs = [
            (x.narrow(axis, 1, x.shape[axis] - 1), x.narrow(axis, 0, x.shape[axis] - 1)) for x in (classes, counts)
        ]
        differs = (pairs[0][0] != pairs[0][1]) & pairs[1][0] & pairs[1][1]
        for start in (0, 1):
            edge.narrow(axis, start, classes.shape[axis] - 1).logical_or_(differs)
    return edge


class CropBorderLoss(nn.Module):
    """Loss of a crop without its border.

    Near the border of a crop a network with padding sees zeros instead of the image. The authors' network of Autofocus
    (Qin 2018, https://arxiv.org/abs/1805.08403) has no padding and loses 14 voxels at every side. With ``margin=14``, a
    network that keeps the size learns from the same voxels, the central 47 of 75, although dilated branches may see
    zeros there. A target that is larger than the prediction loses its border too. The loss is computed in float32.

    Args:
        loss: a loss of prediction (B, C, *spatial) and target (B, C, *spatial) or (B, 1, *spatial).
        margin: voxels to leave out at every side; 0 for the loss of the whole crop.

    Raises:
        ValueError: if ``margin`` is negative, or, when called, if no voxel is left or the target has
            neither the prediction's size nor equal borders around it.

    Example:
        >>> loss = CropBorderLoss(torch.nn.MSELoss(), margin=2)
        >>> loss(torch.ones(1, 1, 7, 7), torch.zeros(1, 1, 7, 7))
        tensor(1.)
    """

    def __init__(self, loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], margin: int) -> None:
        super().__init__()
        if margin < 0:
            raise ValueError(f"margin must be 0 or more voxels, got {margin}.")
        self.loss = loss
        self.margin = margin

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss of the voxels that are ``margin`` or more away from every side of the prediction."""
        if min(input.shape[2:]) <= 2 * self.margin:
            raise ValueError(f"margin={self.margin} leaves nothing of a crop of {tuple(input.shape[2:])} voxels.")
        surplus = {large - small for large, small in zip(target.shape[2:], input.shape[2:])}
        if len(surplus) > 1 or min(surplus) < 0 or min(surplus) % 2:
            expected = f"that of the prediction, {tuple(input.shape)}, or one larger by equal borders"
            raise ValueError(f"target has shape {tuple(target.shape)}, expected {expected}.")
        prediction = crop_border(input, self.margin)
        return self.loss(prediction.float(), crop_border(target, (target.shape[2] - prediction.shape[2]) // 2))
