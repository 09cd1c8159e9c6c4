# SPDX-License-Identifier: Apache-2.0
"""What every view of an encoder-decoder has in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.utils import ensure_tuple_rep
from torch import nn

__all__ = ["Features", "Stream", "total_stride"]

Features = tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]
"""Encoder features, fine to coarse; decoder features, coarse to fine; logits."""


class Stream(nn.Module):
    """A network that shows the features of its encoder and decoder besides its logits.

    Its state dict is that of the network with ``net.`` before every key. For a network of your own, write a subclass
    whose ``forward`` says what the network's own ``forward`` says and keeps the features::

        forward(x) -> (encoder features, fine to coarse; decoder features, coarse to fine; logits)

    with one encoder feature for each resolution, the bottleneck last, and the first decoder feature at the resolution
    next to the bottleneck's. Numbers of channels are measured once, by an image of zeros in evaluation mode; how many
    dimensions and channels that image has is read from the network's first convolution.

    Args:
        net: the network.
        divisor: what each side of an image must be a multiple of, one number or one for each dimension.
        size: the size of the image of zeros; by default ``divisor`` with its first side doubled, because instance
            norm refuses a single voxel.
        flat: lists of modules from deep inside ``net``, for ``forward`` to loop over as ``self.flat[name]``.

    Attributes:
        spatial_dims: number of spatial dimensions.
        divisor: what each side must be a multiple of, one number for each dimension.
        encoder_channels: numbers of channels of the encoder features.
        decoder_channels: numbers of channels of the decoder features.
        out_channels: number of channels of the logits.

    Raises:
        ValueError: if the network has no convolution, or if the features are not in the order above.

    Example:
        >>> class TwoLevels(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fine, self.down = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 16, 2, stride=2)
        ...         self.up, self.head = nn.ConvTranspose2d(16, 8, 2, stride=2), nn.Conv2d(8, 4, 1)
        ...     def forward(self, x):
        ...         fine = self.fine(x)
        ...         return self.head(self.up(self.down(fine)) + fine)
        >>> class TwoLevelsStream(Stream):
        ...     def __init__(self, net):
        ...         super().__init__(net, divisor=2)
        ...     def forward(self, x):
        ...         fine = self.net.fine(x)
        ...         coarse = self.net.down(fine)
        ...         up = self.net.up(coarse) + fine
        ...         return [fine, coarse], [up], self.net.head(up)
        >>> TwoLevelsStream(TwoLevels()).encoder_channels
        (8, 16)
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        divisor: Sequence[int] | int,
        size: Sequence[int] | None = None,
        flat: Mapping[str, Iterable[nn.Module]] | None = None,
    ) -> None:
        super().__init__()
        self.net: Any = net
        self.flat: Any = _Borrowed({name: nn.ModuleList(modules) for name, modules in (flat or {}).items()})
        stem = next((module for module in net.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))), None)
        if stem is None:
            raise ValueError(
                f"{type(net).__name__} has no convolution to read the image's dimensions and channels from."
            )
        self.spatial_dims = stem.weight.ndim - 2
        self.divisor = ensure_tuple_rep(divisor, self.spatial_dims)
        size = size or (2 * self.divisor[0], *self.divisor[1:])
        encoder, decoder, logits = self._dry_run(stem.weight.new_zeros(1, stem.in_channels, *size))
        self._check_order("encoder", "fine to coarse", encoder)
        self._check_order("decoder", "coarse to fine", decoder[::-1])
        self.encoder_channels = tuple(feature.shape[1] for feature in encoder)
        self.decoder_channels = tuple(feature.shape[1] for feature in decoder)
        self.out_channels = logits.shape[1]

    def _dry_run(self, image: torch.Tensor) -> Features:
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            with torch.no_grad():
                return self(image)
        finally:
            for module, training in modes:
                module.training = training

    def _check_order(self, part: str, order: str, fine_to_coarse: list[torch.Tensor]) -> None:
        volumes = [math.prod(feature.shape[2:]) for feature in fine_to_coarse]
        if volumes != sorted(volumes, reverse=True):
            sizes = [tuple(feature.shape[2:]) for feature in fine_to_coarse]
            raise ValueError(
                f"the {part} features of {type(self.net).__name__} must go from {order}, got the sizes "
                f"{sizes if part == 'encoder' else sizes[::-1]}; put them in that order."
            )


class _Borrowed(nn.ModuleDict):
    """Modules that the stream's network owns: they are saved and loaded there, not here."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return kwargs.get("destination")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # what the network has loaded already stands in for the keys that nobody saved
        state_dict.update(super().state_dict(prefix=prefix))


def total_stride(strides: Iterable[Sequence[int] | int], spatial_dims: int) -> tuple[int, ...]:
    """The product of strides, for each dimension.

    Args:
        strides: the stride of every level, one number or one for each dimension.
        spatial_dims: number of spatial dimensions.

    Example:
        >>> total_stride([2, (1, 2, 2)], 3)
        (2, 4, 4)
    """
    levels = [ensure_tuple_rep(stride, spatial_dims) for stride in strides]
    return tuple(math.prod(axis) for axis in zip(*levels))
