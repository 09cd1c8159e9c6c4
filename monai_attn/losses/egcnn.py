# SPDX-License-Identifier: Apache-2.0
"""The total loss of EG-CNN.

Hatamizadeh, Terzopoulos, Myronenko: "Edge-Gated CNNs for Volumetric Semantic Segmentation of Medical Images", 2020,
https://arxiv.org/abs/2002.04207, eq. 3. There is no authors' code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.losses import DiceLoss
from monai.utils import convert_to_tensor
from torch.nn.modules.loss import _Loss

from monai_attn.losses.consistency import EdgeConsistencyLoss, target_masks
from monai_attn.losses.edge import BalancedBCELoss, EdgeLoss
from monai_attn.transforms.edges import edge_targets

__all__ = ["EGCNNLoss"]


class EGCNNLoss(_Loss):
    r"""The total loss of EG-CNN, :math:`L_{semantic} + L_{consistency} + L_{edge}` (eq. 3).

    The edges of the ground truth are made from the label on its device. Where the network gives the segmentation alone,
    as in validation, the loss is the semantic one alone.

    Args:
        sigmoid: whether the channels of the segmentation are structures that may overlap (such as those of BraTS),
            rather than classes with the background as class 0.
        include_background: whether the background has a Dice and a consistency of its own; of no effect if ``sigmoid``.
        threshold: magnitudes above it are edges, see :func:`monai_attn.transforms.edge_targets`.
        soft: whether the target of the edges is the magnitude in place of 0 and 1.
        lambda_semantic: weight of the Dice loss of the segmentation (eq. 4).
        lambda_consistency: weight of the consistency of segmentation and edges (eq. 7).
        lambda_edge_dice: weight of the Dice loss of the edges, :math:`\lambda_1` of eq. 5.
        lambda_edge_bce: weight of the balanced cross-entropy of the edges, :math:`\lambda_2` of eq. 5.
        aux_main_weight: weight of a Dice loss of the main stream alone, before it is fused with the edges.
        consistency: the consistency loss, by default ``EdgeConsistencyLoss`` with the same ``sigmoid`` and
            ``include_background``.
        balanced_bce: the balanced cross-entropy, by default ``BalancedBCELoss()``.

    Attributes:
        terms: the terms of the last call without their weights, detached: ``semantic``, ``consistency``, ``edge_dice``,
            ``edge_bce``, ``main``; :class:`monai_attn.handlers.LossTerms` shows them.

    Raises:
        ValueError: if a weight is negative.

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
        aux_main_weight: float = 0.0,
        consistency: EdgeConsistencyLoss | None = None,
        balanced_bce: BalancedBCELoss | None = None,
    ) -> None:
        super().__init__()
        if min(lambda_semantic, lambda_consistency, aux_main_weight) < 0:
            raise ValueError(
                "lambda_semantic, lambda_consistency and aux_main_weight must not be negative, got "
                f"{lambda_semantic}, {lambda_consistency} and {aux_main_weight}."
            )
        self.sigmoid = sigmoid
        self.threshold = threshold
        self.soft = soft
        self.lambda_semantic = lambda_semantic
        self.lambda_consistency = lambda_consistency
        self.aux_main_weight = aux_main_weight
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
            input: logits of the segmentation (B, C, *spatial), alone or in a tuple with those of the edges (B, 1 or
                number of foreground classes, *spatial), whose number of channels says whether the edges of all classes
                are united. ``aux_main_weight`` needs those of the main stream (B, C, *spatial) as a third one.
            target: class indices (B, 1, *spatial) or, if ``sigmoid``, masks (B, C, *spatial).

        Raises:
            ValueError: if the shapes do not fit, or the main stream's logits are missing.
        """
        segmentation, *others = [input] if isinstance(input, torch.Tensor) else input
        masks = target_masks(segmentation, target, sigmoid=self.sigmoid)
        semantic = self._dice(segmentation, target)
        self.terms = {"semantic": semantic.detach()}
        total = self.lambda_semantic * semantic
        if others:
            consistency = self.consistency(segmentation, target)
            total = total + self.lambda_consistency * consistency + self.edge(others[0], self._edges(masks, others[0]))
            self.terms.update(consistency=consistency.detach(), **self.edge.terms)
        if others and self.aux_main_weight:
            if len(others) < 2:
                raise ValueError(
                    f"aux_main_weight={self.aux_main_weight} needs the logits of the main stream, got {len(input)} "
                    "outputs; give (segmentation, edges, main), or aux_main_weight=0."
                )
            main = self._dice(others[1], target)
            total = total + self.aux_main_weight * main
            self.terms["main"] = main.detach()
        return total

    def _dice(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.semantic(*(convert_to_tensor(x, dtype=torch.float32, track_meta=False) for x in (logits, target)))

    def _edges(self, masks: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] not in (1, masks.shape[1]):
            raise ValueError(
                f"the edges have {logits.shape[1]} channels, expected 1 for those of all classes or {masks.shape[1]} "
                "for those of each foreground class; change the network's number of edge classes."
            )
        return edge_targets(masks, per_class=logits.shape[1] > 1, threshold=self.threshold, soft=self.soft)
