# SPDX-License-Identifier: Apache-2.0
"""The losses of EG-CNN's edge stream.

Hatamizadeh, Terzopoulos, Myronenko: "Edge-Gated CNNs for Volumetric Semantic Segmentation of Medical Images", 2020,
https://arxiv.org/abs/2002.04207, eqs. 4 to 6.

There is no authors' code. Departures from the paper's text: eq. 6 is a mean over the voxels in place of a sum (which
would drown the Dice term), its weights are kept away from 0 and 1, and Dice (eq. 4) has MONAI's smoothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from monai.losses import DiceLoss
from monai.utils import LossReduction, convert_to_tensor
from torch.nn.modules.loss import _Loss

__all__ = ["BalancedBCELoss", "EdgeLoss"]


class BalancedBCELoss(_Loss):
    r"""Binary cross-entropy in which the many non-edge voxels weigh as much as the few edge voxels (eq. 6).

    :math:`-\beta \sum_{j \in e_+} \log p_j - (1 - \beta) \sum_{j \in e_-} \log(1 - p_j)` with the edges :math:`e_+` and
    the fraction :math:`\beta` of the voxels that are none. The paper's text exchanges the names of the two sets, which
    would give the edges the smaller weight. It is computed in float32.

    Args:
        beta_range: bounds of :math:`\beta`. ``None`` is the paper: without any edge the loss is then 0 whatever is
            predicted, so that false edges there cost nothing.
        batch: whether :math:`\beta` is that of the batch; otherwise every sample and channel has its own.
        weight_non_edges: whether the non-edges have the weight :math:`1 - \beta`; otherwise it is 1.
        reduction: ``"mean"``, ``"sum"`` (the paper) or ``"none"``, over voxels.

    Raises:
        ValueError: if ``beta_range`` is not an interval within 0 to 1.

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
        super().__init__(reduction=LossReduction(reduction).value)
        low, high = beta_range if beta_range is not None else (0.0, 1.0)
        if not 0 <= low <= high <= 1:
            raise ValueError(f"beta_range must be an interval within 0 to 1, got {beta_range}.")
        self.beta_range = (low, high)
        self.batch = batch
        self.weight_non_edges = weight_non_edges

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Map logits (B, C, *spatial) and edges (B, C, *spatial) from 0 to 1 to the loss.

        Raises:
            ValueError: if the shapes differ.
        """
        _check_same_shape(input, target)
        logits, edges = (convert_to_tensor(x, dtype=torch.float32, track_meta=False) for x in (input, target))
        axes = list(range(2, edges.ndim)) + ([0] if self.batch else [])
        beta = (1 - edges.mean(axes, keepdim=True)).clamp(*self.beta_range)
        non_edge_weight = 1 - beta if self.weight_non_edges else 1.0
        loss = -beta * edges * F.logsigmoid(logits) - non_edge_weight * (1 - edges) * F.logsigmoid(-logits)
        if self.reduction == LossReduction.MEAN.value:
            return loss.mean()
        return loss.sum() if self.reduction == LossReduction.SUM.value else loss


class EdgeLoss(_Loss):
    r"""Loss of the edge stream, :math:`\lambda_1 \mathrm{Dice} + \lambda_2 \mathrm{BCE}` (eq. 5).

    Args:
        lambda_dice: :math:`\lambda_1`, weight of the Dice loss (eq. 4).
        lambda_bce: :math:`\lambda_2`, weight of the balanced cross-entropy (eq. 6).
        balanced_bce: the latter; by default ``BalancedBCELoss()``.

    Attributes:
        terms: the terms of the last call without their weights, ``edge_dice`` and ``edge_bce``.

    Raises:
        ValueError: if a weight is negative.

    Example:
        >>> EdgeLoss(lambda_dice=0.0)(torch.zeros(1, 1, 8), torch.tensor([[[1.0, 0, 0, 0, 0, 0, 0, 0]]]))
        tensor(0.0758)
    """

    def __init__(
        self, *, lambda_dice: float = 1.0, lambda_bce: float = 0.5, balanced_bce: BalancedBCELoss | None = None
    ) -> None:
        super().__init__()
        if lambda_dice < 0 or lambda_bce < 0:
            raise ValueError(f"lambda_dice and lambda_bce must not be negative, got {lambda_dice} and {lambda_bce}.")
        self.lambda_dice = lambda_dice
        self.lambda_bce = lambda_bce
        self.dice = DiceLoss(sigmoid=True, squared_pred=True)
        self.balanced_bce = balanced_bce or BalancedBCELoss()
        self.terms: dict[str, torch.Tensor] = {}

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Map logits (B, C, *spatial) and edges (B, C, *spatial) from 0 to 1 to the loss, a scalar.

        Raises:
            ValueError: if the shapes differ.
        """
        _check_same_shape(input, target)
        logits, edges = (convert_to_tensor(x, dtype=torch.float32, track_meta=False) for x in (input, target))
        dice, bce = self.dice(logits, edges), self.balanced_bce(logits, edges)
        self.terms = {"edge_dice": dice.detach(), "edge_bce": bce.detach()}
        return self.lambda_dice * dice + self.lambda_bce * bce


def _check_same_shape(input: torch.Tensor, target: torch.Tensor) -> None:
    if target.shape != input.shape:
        raise ValueError(f"ground truth has different shape {tuple(target.shape)} from input {tuple(input.shape)}.")
