# SPDX-License-Identifier: Apache-2.0
"""Consistency loss between segmentation and true edges (EG-CNN).

Hatamizadeh et al. (EG-CNN), arXiv 2020, https://arxiv.org/abs/2002.04207, eqs. 7 and 8.

The authors have not released code, and the code of GSCNN, on which they build, does not compute a gradient. Departure
from the paper's text: eq. 7 is a mean over the edge voxels of every foreground class, since a sum would outweigh the
Dice term.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from monai.utils import LossReduction, convert_to_tensor, look_up_option
from torch import nn

from monai_attn.transforms.edges import EDGE_TOLERANCE, foreground_masks, sobel_edges

__all__ = ["EdgeConsistencyLoss", "target_masks"]

_CACHED_VOXELS = 2**20  # a dozen such maps, 50 MB, still fit a CPU's cache


def as_float(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor in float32, without metadata."""
    return convert_to_tensor(x, dtype=torch.float32, track_meta=False)


def target_masks(
    input: torch.Tensor, target: torch.Tensor, *, sigmoid: bool, include_background: bool = False
) -> torch.Tensor:
    """Return bool masks (B, foreground classes, *spatial) of a target.

    Args:
        input: logits (B, C, *spatial).
        target: class indices (B, 1, *spatial) or, for a sigmoid network, masks (B, C, *spatial).
        sigmoid: whether the network's channels are structures that may overlap, rather than classes.
        include_background: whether class 0 gets a mask; a sigmoid network has no background.

    Raises:
        ValueError: if the shapes do not fit.

    Example:
        >>> target_masks(torch.zeros(1, 3, 2), torch.tensor([[[0, 2]]]), sigmoid=False).int()
        tensor([[[0, 0], [0, 1]]], dtype=torch.int32)
    """
    if input.shape[1] == 1 and not sigmoid:
        raise ValueError("input has one channel, whose softmax is 1 everywhere; give sigmoid=True.")
    expected = (input.shape[0], input.shape[1] if sigmoid else 1, *input.shape[2:])
    if target.shape != expected:
        raise ValueError(
            f"ground truth has different shape {tuple(target.shape)} from input {tuple(input.shape)}, expected "
            f"{expected}: {'masks' if sigmoid else 'class indices'} for sigmoid={sigmoid}."
        )
    target = convert_to_tensor(target, track_meta=False)
    if sigmoid:
        return target > 0.5
    return foreground_masks(target, input.shape[1], include_background=include_background)


class EdgeConsistencyLoss(nn.Module):
    r"""Consistency loss of predicted and true edges (eqs. 7, 8).

    :math:`\frac{1}{|e_+|}\sum_{j \in e_+} \left|\,\|\nabla \hat y_j\| - \|\nabla y_j\|\,\right|` with the magnitude of
    the Sobel gradient and the edge voxels :math:`e_+` of the ground truth :math:`y`. In place of the argmax, which has
    no gradient, :math:`\hat y = \mathrm{softmax}((\log P + g) / \tau)` with Gumbel noise :math:`g` from PyTorch's
    global generator. It is computed in float32.

    Args:
        tau: temperature :math:`\tau`; the lower, the closer to an argmax, and the larger and rarer the gradients.
        hard: take the argmax, with the gradient of the soft choice (straight-through).
        noise: whether to add Gumbel noise.
        mask: ``"target"``, the voxels of the paper, or ``"union"``, which adds the edges of the predicted classes, so
            that spurious edges far from the true ones count too.
        include_background: whether class 0 is a class like the others; ignored if ``sigmoid``.
        sigmoid: whether the network's channels are structures that may overlap, each a choice between two classes.
        reduction: ``"mean"`` over the samples and classes that have an edge, ``"sum"``, or ``"none"`` for (B, number of
            foreground classes).

    Raises:
        ValueError: if ``tau`` is not positive or ``mask`` is unknown, or, when called, if the shapes do not fit.

    Example:
        >>> label = torch.tensor([[[0, 0, 0, 1, 1, 1]]])
        >>> logits = 20.0 * torch.cat([label == 0, label == 1], dim=1)
        >>> EdgeConsistencyLoss(noise=False)(logits, label)
        tensor(0.)
    """

    def __init__(
        self,
        *,
        tau: float = 1.0,
        hard: bool = False,
        noise: bool = True,
        mask: Literal["target", "union"] = "target",
        include_background: bool = False,
        sigmoid: bool = False,
        reduction: LossReduction | str = LossReduction.MEAN,
    ) -> None:
        super().__init__()
        if tau <= 0:
            raise ValueError(f"tau must be positive, got {tau}; as it falls, the choice nears an argmax.")
        self.reduction = LossReduction(reduction).value
        self.tau = tau
        self.hard = hard
        self.noise = noise
        self.union = look_up_option(mask, {"target": False, "union": True})
        self.include_background = include_background
        self.sigmoid = sigmoid

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Map logits (B, C, *spatial) and the ground truth to the loss.

        The ground truth is class indices (B, 1, *spatial) or, if ``sigmoid``, masks (B, C, *spatial).
        """
        masks = target_masks(input, target, sigmoid=self.sigmoid, include_background=self.include_background)
        logits = as_float(input)
        maps = [self._foreground(self.sample(logits)), masks]
        if self.union:
            maps.append(self._foreground(self._argmax(logits.detach())) > 0.5)
        parts = [_distance(*part) for part in zip(*map(_in_parts, maps))]
        loss, number = (torch.cat(values).reshape(masks.shape[:2]) for values in zip(*parts))
        if self.reduction == LossReduction.MEAN.value:
            return loss.sum() / (number > 0).sum().clamp(min=1)
        return loss.sum() if self.reduction == LossReduction.SUM.value else loss

    def sample(self, logits: torch.Tensor) -> torch.Tensor:
        """Choose a class per voxel of (B, C, *spatial), differentiably."""
        if self.noise:
            # Gumbel noise, on a CPU 3 times as fast as by exponential_; that of two classes differs by a logistic one
            uniform = torch.empty_like(logits).uniform_(torch.finfo(logits.dtype).tiny, 1)
            logits = logits + uniform.logit_() if self.sigmoid else logits - uniform.log_().neg_().log_()
        scaled = logits if self.tau == 1 else logits / self.tau
        soft = torch.sigmoid(scaled) if self.sigmoid else torch.softmax(scaled, dim=1)
        # in the forward pass exactly 0 or 1, in the backward pass the soft choice
        return self._argmax(logits) + (soft - soft.detach()) if self.hard else soft

    def _argmax(self, logits: torch.Tensor) -> torch.Tensor:
        if self.sigmoid:
            return (logits > 0).to(logits.dtype)
        return torch.zeros_like(logits).scatter_(1, logits.argmax(dim=1, keepdim=True), 1.0)

    def _foreground(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.sigmoid or self.include_background else x[:, 1:]


def _in_parts(maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Split maps (B, C, *spatial) into (N, 1, *spatial); on a CPU into so few that their edges stay in its cache."""
    maps = maps.flatten(0, 1)[:, None]
    return maps.split(max(1, _CACHED_VOXELS // maps[0].numel()) if maps.device.type == "cpu" else len(maps))


def _distance(predicted: torch.Tensor, truth: torch.Tensor, *chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean distance and number of edge voxels, the true ones and those of the chosen mask."""
    true_edges, predicted_edges = sobel_edges(truth), sobel_edges(predicted)
    voxels = true_edges > EDGE_TOLERANCE
    for mask in chosen:
        voxels |= sobel_edges(mask) > EDGE_TOLERANCE
    weight = voxels.float()
    axes = list(range(2, weight.ndim))
    number = weight.sum(axes)
    distance = F.l1_loss(predicted_edges, true_edges, reduction="none") * weight
    return distance.sum(axes) / number.clamp(min=1), number
