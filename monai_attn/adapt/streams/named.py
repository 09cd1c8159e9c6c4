# SPDX-License-Identifier: Apache-2.0
"""A view of a network that is known by the names of its modules alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from monai_attn.adapt.streams.base import Features, Stream

__all__ = ["NamedStream"]


class NamedStream(Stream):
    """The features of any network, by the paths of the modules that give them.

    It listens to these modules while the network runs, and can therefore be traced and exported but not scripted. The
    network must not change a listed module's output in place afterwards (an in-place ReLU right behind it): list the
    last module that touches the feature.

    Args:
        net: the network; its output must be one tensor of logits.
        encoder: paths of the modules that give the encoder features, fine to coarse, the bottleneck last.
        decoder: paths of the modules that give the decoder features, coarse to fine.
        divisor: what each side of an image must be a multiple of, one number or one for each dimension.
        size: the size of an image that the network takes, if not every multiple of ``divisor`` is one.

    Raises:
        ValueError: if the network has no module of such a path, or does not run it.
        TypeError: if such a module, or the network, does not give one tensor.

    Example:
        >>> from monai.networks.nets import BasicUNet
        >>> net = BasicUNet(2, 1, 3, features=(8, 8, 16, 32, 64, 8))
        >>> encoder = ["conv_0", "down_1", "down_2", "down_3", "down_4"]
        >>> NamedStream(net, encoder, ["upcat_4", "upcat_3", "upcat_2", "upcat_1"], divisor=16).encoder_channels
        (8, 8, 16, 32, 64)
    """

    def __init__(
        self,
        net: nn.Module,
        encoder: Sequence[str],
        decoder: Sequence[str],
        *,
        divisor: Sequence[int] | int,
        size: Sequence[int] | None = None,
    ) -> None:
        known = dict(net.named_modules(remove_duplicate=False))
        missing = [path for path in (*encoder, *decoder) if path not in known]
        if missing:
            top = [name for name, _ in net.named_children()]
            raise ValueError(f"{type(net).__name__} has no module {missing}; at its top it has {top}.")
        self.encoder, self.decoder = tuple(encoder), tuple(decoder)
        super().__init__(net, divisor=divisor, size=size)

    def forward(self, x: torch.Tensor) -> Features:
        """Map an image (B, C, *spatial) to encoder features, decoder features and logits."""
        seen: dict[str, torch.Tensor] = {}

        def keep(path: str, _module: nn.Module, _inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            seen[path] = output

        paths = (*self.encoder, *self.decoder)
        hooks = [self.net.get_submodule(path).register_forward_hook(partial(keep, path)) for path in paths]
        try:
            logits = self.net(x)
        finally:
            for hook in hooks:
                hook.remove()
        self._check(seen, logits)
        return [seen[path] for path in self.encoder], [seen[path] for path in self.decoder], logits

    def _check(self, seen: dict[str, torch.Tensor], logits: torch.Tensor) -> None:
        name = type(self.net).__name__
        silent = [path for path in (*self.encoder, *self.decoder) if path not in seen]
        if silent:
            raise ValueError(f"{name} does not run its module {silent}; list modules that it calls.")
        for path, output in {**seen, "": logits}.items():
            if not isinstance(output, torch.Tensor):
                giver = f"module '{path}' of {name}" if path else name
                raise TypeError(f"{giver} must give one tensor, got {type(output).__name__}.")
