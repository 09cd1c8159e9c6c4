# SPDX-License-Identifier: Apache-2.0
"""Group norm for networks with built-in batch norm.

Wu, He: "Group Normalization", ECCV 2018, https://arxiv.org/abs/1803.08494. EG-CNN (https://arxiv.org/abs/2002.04207,
Sec. 4) trains its U-Net and V-Net with it.
"""

from __future__ import annotations

import math

from torch import nn

__all__ = ["with_group_norm"]

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def with_group_norm(network: nn.Module, num_groups: int = 8) -> nn.Module:
    """Replace every batch norm of a network by group norm.

    Scales and shifts keep their keys; running statistics are removed. Do it before training: weights trained with batch
    norm do not fit.

    Args:
        network: the network, which is changed in place and returned.
        num_groups: number of groups; where it does not divide the channels, their greatest common divisor.

    Raises:
        ValueError: if ``num_groups`` is below 1.

    Example:
        >>> with_group_norm(nn.Sequential(nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12)))[1].num_groups
        4
    """
    if num_groups < 1:
        raise ValueError(f"num_groups must be at least 1, got {num_groups}.")
    for path, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, _BATCH_NORMS):
            channels = module.num_features
            group = nn.GroupNorm(math.gcd(num_groups, channels), channels, eps=module.eps, affine=module.affine)
            group.weight, group.bias = module.weight, module.bias
            network.set_submodule(path, group.train(module.training))
    return network
