# SPDX-License-Identifier: Apache-2.0
"""Edge losses of EG-CNN, and its total loss.

Hatamizadeh et al. (EG-CNN), arXiv 2020, https://arxiv.org/abs/2002.04207, eqs. 3 to 6; eqs. 7 and 8 are in
:mod:`monai_attn.losses.consistency`.

The authors have not released code. Departures from the paper's text: eq. 6 is a mean over the voxels in place of a sum
(which would drown the Dice term), its weights are kept away from 0 and 1, and Dice (eq. 4) has MONAI's smoothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.utils import LossReduction
from torch import nn

from monai_attn.losses.consistency import EdgeConsistencyLoss, as_float, target_masks
from monai_attn.transforms.edges import edge_targets

__all__ = ["BalancedBCELoss", "EGCNNLoss", "EdgeLoss"]


class BalancedBCELoss(nn.Module):
    r"""Class-balanced binary cross-entropy of edges (eq. 6).

    :math:`-\beta \sum_{j \in e_+} \log p_j - (1 - \beta) \sum_{j \in e_-} \log(1 - p_j)` with the edges :math:`e_+` and
    the fraction :math:`\beta` of non-edge voxels. The paper's text exchanges the names of the two sets, which would
    give the edges the smaller weight. It is computed in float32.

    Args:
        beta_range: bounds of :math:`\beta`. With ``None`` (the paper) the loss of an image without edges is 0 whatever
            is predicted.
        batch: whether :math:`\beta` is that of the batch; otherwise every sample and channel has its own.
        weight_non_edges: whether the non-edges have the weight :math:`1 - \beta`; otherwise it is 1.
        reduction: ``"mean"``, ``"sum"`` (the paper) or ``"none"``, over voxels.

    Raises:
        ValueError: if ``beta_range`` is not an interval within 0 to 1, or, when called, if the shapes differ.

    Example:
        >>> BalancedBCELoss()(torch.zeros(1, 1, 8), torch.tensor([[[1.0, 0, 0, 0, 0, 0, 0, 0]]]))
        tensor(0.1516)
    """

    def __init__(
        self,
        *,
        beta_range: tuple[float, float] | None = (0.01, 0.99),
        batch: bool = False,
        weight_non_edges: bool = True,
        reduction: LossReduction | str = LossReduction.MEAN,
    ) -> None:
        super().__init__()
        low, high = beta_range if beta_range is not None else (0.0, 1.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"beta_range must be an interval within 0 to 1, got {beta_range}.")
        self.reduction = LossReduction(reduction).value
        self.beta_range = (low, high)
        self.batch = batch
        self.weight_non_edges = weight_non_edges

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Map logits (B, C, *spatial) and edges (B, C, *spatial) from 0 to 1 to the loss."""
        logits, edges = _same_shape(input, target)
        axes = list(range(2, edges.ndim)) + ([0] if self.batch else [])
        beta = (1 - edges.mean(axes, keepdim=True)).clamp(*self.beta_range)
        non_edge_weight = 1 - beta if self.weight_non_edges else 1.0
        loss = -beta * edges * F.logsigmoid(logits) - non_edge_weight * (1 - edges) * F.logsigmoid(-logits)
        if self.reduction == LossReduction.MEAN.value:
            return loss.mean()
        return loss.sum() if self.reduction == LossReduction.SUM.value else loss


class EdgeLoss(nn.Module):
    r"""Edge stream loss, :math:`\lambda_1 \mathrm{Dice} + \lambda_2 \mathrm{BCE}` (eq. 5).

    Args:
        lambda_dice: :math:`\lambda_1`, weight of the Dice loss (eq. 4).
        lambda_bce: :math:`\lambda_2`, weight of the balanced cross-entropy (eq. 6).
        balanced_bce: the balanced cross-entropy; by default ``BalancedBCELoss()``.

    Attributes:
        terms: the unweighted terms of the last call, ``edge_dice`` and ``edge_bce``.

    Raises:
        ValueError: if a weight is negative, or, when called, if the shapes differ.

    Example:
        >>> EdgeLoss(lambda_dice=0.0)(torch.zeros(1, 1, 8), torch.tensor([[[1.0, 0, 0, 0, 0, 0, 0, 0]]]))
        tensor(0.0758)
    """

    def __init__(
        self, *, lambda_dice: float = 1.0, lambda_bce: float = 0.5, balanced_bce: BalancedBCELoss | None = None
    ) -> None:
        super().__init__()
        if lambda_dice < 0 or lambda_bce < 0:
            raise ValueError(f"{lambda_dice=} and {lambda_bce=} must not be negative.")
        self.lambda_dice = lambda_dice
        self.lambda_bce = lambda_bce
        self.dice = DiceLoss(sigmoid=True, squared_pred=True)
        self.balanced_bce = balanced_bce or BalancedBCELoss()
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Map logits (B, C, *spatial) and edges (B, C, *spatial) from 0 to 1 to the loss, a scalar."""
        logits, edges = _same_shape(input, target)
        dice, bce = self.dice(logits, edges), self.balanced_bce(logits, edges)
        self.terms = {"edge_dice": dice.detach(), "edge_bce": bce.detach()}
        return self.lambda_dice * dice + self.lambda_bce * bce


class EGCNNLoss(nn.Module):
    r"""EG-CNN loss, :math:`L_{semantic} + L_{consistency} + L_{edge}` (eq. 3).

    The true edges are computed from the label. If the input is the segmentation alone, as in validation, the loss is
    the semantic one alone.

    Args:
        sigmoid: whether the channels of the segmentation are structures that may overlap (such as those of BraTS),
            rather than classes with the background as class 0.
        include_background: whether the background has a Dice and a consistency of its own; ignored if ``sigmoid``.
        threshold, soft: see :func:`monai_attn.transforms.edge_targets`.
        lambda_semantic: weight of the Dice loss of the segmentation (eq. 4).
        lambda_consistency: weight of the consistency of segmentation and edges (eq. 7).
        lambda_edge_dice, lambda_edge_bce: :math:`\lambda_1` and :math:`\lambda_2` of :class:`EdgeLoss`.
        consistency: by default ``EdgeConsistencyLoss`` with the same ``sigmoid`` and ``include_background``.
        balanced_bce: by default ``BalancedBCELoss()``.

    Attributes:
        terms: the unweighted terms of the last call, detached: ``semantic``, ``consistency``, ``edge_dice``,
            ``edge_bce``; :class:`monai_attn.handlers.LossTerms` shows them.

    Raises:
        ValueError: if a weight is negative, or, when called, if the shapes do not fit.

    Example:
        >>> loss = EGCNNLoss()
        >>> total = loss((torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)), torch.ones(1, 1, 8, 8))
        >>> list(loss.terms)
        ['semantic', 'consistency', 'edge_dice', 'edge_bce']
    """

    def __init__(
        self,
        *,
        sigmoid: bool = False,
        include_background: bool = False,
        threshold: float = 0.0,
        soft: bool = False,
        lambda_semantic: float = 1.0,
        lambda_consistency: float = 1.0,
        lambda_edge_dice: float = 1.0,
        lambda_edge_bce: float = 0.5,
        consistency: EdgeConsistencyLoss | None = None,
        balanced_bce: BalancedBCELoss | None = None,
    ) -> None:
        super().__init__()
        if min(lambda_semantic, lambda_consistency) < 0:
            raise ValueError(f"{lambda_semantic=} and {lambda_consistency=} must not be negative.")
        self.sigmoid = sigmoid
        self.threshold = threshold
        self.soft = soft
        self.lambda_semantic = lambda_semantic
        self.lambda_consistency = lambda_consistency
        self.semantic = DiceLoss(
            include_background=include_background or sigmoid,
            to_onehot_y=not sigmoid,
            sigmoid=sigmoid,
            softmax=not sigmoid,
            squared_pred=True,
        )
        self.consistency = consistency or EdgeConsistencyLoss(include_background=include_background, sigmoid=sigmoid)
        self.edge = EdgeLoss(lambda_dice=lambda_edge_dice, lambda_bce=lambda_edge_bce, balanced_bce=balanced_bce)
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, input: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """Map the outputs of the network and the label to the loss, a scalar.

        Args:
            input: logits of the segmentation (B, C, *spatial), alone or in a tuple with those of the edges, whose
                channels are 1 (edges of all classes united) or the number of foreground classes.
            target: class indices (B, 1, *spatial) or, if ``sigmoid``, masks (B, C, *spatial).
        """
        segmentation, *edges = [input] if isinstance(input, torch.Tensor) else input
        masks = target_masks(segmentation, target, sigmoid=self.sigmoid)
        semantic = self.semantic(as_float(segmentation), as_float(target))
        self.terms = {"semantic": semantic.detach()}
        total = self.lambda_semantic * semantic
        if edges:
            consistency = self.consistency(segmentation, target)
            total = total + self.lambda_consistency * consistency + self.edge(edges[0], self._edges(masks, edges[0]))
            self.terms.update(consistency=consistency.detach(), **self.edge.terms)
        return total

    def _edges(self, masks: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] not in (1, masks.shape[1]):
            raise ValueError(
                f"the edges have {logits.shape[1]} channels, expected 1 for those of all classes or {masks.shape[1]} "
                "for those of each foreground class; change the network's number of edge classes."
            )
        return edge_targets(masks, per_class=logits.shape[1] > 1, threshold=self.threshold, soft=self.soft)


def _same_shape(input: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and edges in float32, if they have the same shape."""
    if target.shape != input.shape:
        raise ValueError(f"ground truth has different shape {tuple(target.shape)} from input {tuple(input.shape)}.")
    return as_float(input), as_float(target)
