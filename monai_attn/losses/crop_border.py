# SPDX-License-Identifier: Apache-2.0
"""Loss of a crop without its border."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from monai_attn.blocks.autofocus import crop_border

__all__ = ["CropBorderLoss"]


class CropBorderLoss(nn.Module):
    """Apply a loss to a crop without its border.

    As in the Autofocus paper (Qin 2018, https://arxiv.org/abs/1805.08403). Near the border of a crop a network with
    padding sees zeros where the image goes on. The authors' network loses 14 voxels at every side, so it learns from
    the central 47 of 75 voxels; with ``margin=14`` a network that keeps the size learns from the same voxels. It is
    computed in float32.

    Args:
        loss: a loss of prediction (B, C, *spatial) and target (B, C, *spatial) or (B, 1, *spatial).
        margin: voxels to leave out at every side; 0 for the loss of the whole crop.

    Raises:
        ValueError: if ``margin`` is negative, or when called if no voxel is left.

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
        """Return the loss of the voxels that are ``margin`` or more away from every side."""
        if min(input.shape[2:]) <= 2 * self.margin:
            raise ValueError(
                f"margin={self.margin} leaves nothing of a crop of {tuple(input.shape[2:])} voxels; "
                "use larger crops or a smaller margin."
            )
        return self.loss(crop_border(input, self.margin).float(), crop_border(target, self.margin))
