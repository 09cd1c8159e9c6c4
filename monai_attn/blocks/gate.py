# SPDX-License-Identifier: Apache-2.0
"""Gate, the last layer of every attention block.

Its output is the attention map, so :func:`monai_attn.visualize.capture_attention` finds the maps of any network.
"""

from __future__ import annotations

import torch
from monai.utils import look_up_option
from torch import nn

__all__ = ["Gate"]


class Gate(nn.Module):
    """Activation that turns logits into an attention map.

    Args:
        activation: ``"sigmoid"`` for a map of independent values in [0, 1] (scSE, FocusNet, EG-CNN), ``"softmax"``
            for values that sum to one over the channel dimension (Autofocus).

    Raises:
        ValueError: if ``activation`` is neither of the two.

    Example:
        >>> Gate("softmax")(torch.zeros(1, 4, 8, 8))[0, :, 0, 0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """

    def __init__(self, activation: str = "sigmoid") -> None:
        super().__init__()
        activations = {"sigmoid": nn.Sigmoid(), "softmax": nn.Softmax(dim=1)}
        self.activation = look_up_option(activation, activations)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Map logits (B, C, *spatial) to the attention map (B, C, *spatial)."""
        return self.activation(logits)
