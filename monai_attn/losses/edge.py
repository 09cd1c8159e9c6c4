# SPDX-License-Identifier: Apache-2.0
"""Edge losses of EG-CNN, and its total loss.

Hatamizadeh et al. (EG-CNN), arXiv 2020, https://arxiv.org/abs/2002.04207, eqs. 3 to 6; eqs. 7 and 8 are in
:mod:`monai_attn.losses.consistency`.

The authors have not released code. Departures from the paper's text: the semantic and the consistency loss are those of
the fused output instead of the main stream; eq. 6 is a mean over voxels instead of a sum, which would outweigh the Dice
term, and has a separate weight where there is no edge; Dice (eq. 4) has MONAI's smoothing.
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
        empty_weight: weight of the voxels of a map without edges, if non-edges are weighted; with 0, as in eq. 6, their
            loss is 0 for any prediction.
        batch: whether :math:`\beta` is computed over the batch, for each channel, instead of for each sample and
            channel.
        weight_non_edges: whether non-edges have the weight :math:`1 - \beta` instead of 1.
        reduction: ``"mean"``, ``"sum"`` (the paper) or ``"none"``, over voxels.

    Raises:
        ValueError: if ``empty_weight`` is negative, or, when called, if the shapes differ.

    Example:
        >>> BalancedBCELoss()(torch.zeros(1, 1, 8), torch.tensor([[[1.0, 0, 0, 0, 0, 0, 0, 0]]]))
        tensor(0.1516)
    """

    def __init__(
        self,
        *,
        empty_weight: float = 0.01,
        batch: bool = False,
        weight_non_edges: bool = True,
        reduction: LossReduction | str = LossReduction.MEAN,
    ) -> None:
        super().__init__()
        if empty_weight < 0:
            raise ValueError(f"{empty_weight=} must not be negative.")
        self.reduction = LossReduction(reduction).value
        self.empty_weight = empty_weight
        self.batch = batch
        self.weight_non_edges = weight_non_edges

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Map logits (B, C, *spatial) and edges (B, C, *spatial) from 0 to 1 to the loss."""
        logits, edges = _same_shape(input, target)
        axes = list(range(2, edges.ndim)) + ([0] if self.batch else [])
        share = edges.mean(axes, keepdim=True)  # 1 - beta
        others = torch.where(share > 0, share, self.empty_weight) if self.weight_non_edges else 1.0
        loss = (share - 1) * edges * F.logsigmoid(logits) - others * (1 - edges) * F.logsigmoid(-logits)
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
        main_weight: weight of a Dice loss of the main stream's own logits, the semantic term of the paper, beside that
            of the fused output.
        consistency: by default ``EdgeConsistencyLoss`` with the same ``sigmoid`` and ``include_background``.
        balanced_bce: by default ``BalancedBCELoss()``.

    Attributes:
        terms: the unweighted terms of the last call, detached: ``semantic``, ``consistency``, ``edge_dice``,
            ``edge_bce``, and ``main`` if it has a weight; :class:`monai_attn.handlers.LossTerms` shows them.

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
        main_weight: float = 0.0,
        consistency: EdgeConsistencyLoss | None = None,
        balanced_bce: BalancedBCELoss | None = None,
    ) -> None:
        super().__init__()
        if min(lambda_semantic, lambda_consistency, main_weight) < 0:
            raise ValueError(f"{lambda_semantic=}, {lambda_consistency=} and {main_weight=} must not be negative.")
        self.sigmoid = sigmoid
        self.threshold = threshold
        self.soft = soft
        self.lambda_semantic = lambda_semantic
        self.lambda_consistency = lambda_consistency
        self.main_weight = main_weight
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
                channels are 1 (edges of all classes united) or the number of foreground classes, and those of the main
                stream (B, C, *spatial), which only ``main_weight`` needs.
            target: class indices (B, 1, *spatial) or, if ``sigmoid``, masks (B, C, *spatial).
        """
        segmentation, *streams = [input] if isinstance(input, torch.Tensor) else input
        masks = target_masks(segmentation, target, sigmoid=self.sigmoid)
        semantic = self.semantic(as_float(segmentation), as_float(target))
        self.terms = {"semantic": semantic.detach()}
        total = self.lambda_semantic * semantic
        if streams:
            edges, *main = streams
            consistency = self.consistency(segmentation, target)
            total = total + self.lambda_consistency * consistency + self.edge(edges, self._edges(masks, edges))
            self.terms.update(consistency=consistency.detach(), **self.edge.terms)
            if self.main_weight:
                if not main:
                    raise ValueError("main_weight needs the main stream's logits; wrap the network in AllOutputs.")
                dice = self.semantic(as_float(main[0]), as_float(target))
                self.terms["main"] = dice.detach()
                total = total + self.main_weight * dice
        return total

    def _edges(self, masks: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] not in (1, masks.shape[1]):
            expected = f"1, or {masks.shape[1]} for those of each foreground class (edge_classes of the network)"
            raise ValueError(f"the edges have {logits.shape[1]} channels, expected {expected}.")
        return edge_targets(masks, per_class=logits.shape[1] > 1, threshold=self.threshold, soft=self.soft)


def _same_shape(input: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and edges in float32, if they have the same shape."""
    if target.shape != input.shape:
        raise ValueError(f"ground truth has different shape {tuple(target.shape)} from input {tuple(input.shape)}.")
    return as_float(input), as_float(target)
