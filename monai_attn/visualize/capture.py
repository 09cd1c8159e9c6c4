# SPDX-License-Identifier: Apache-2.0
"""Read the attention maps of any network, ours or one with our blocks in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from monai_attn.blocks.gate import Gate

__all__ = ["capture_attention"]


@contextmanager
def capture_attention(network: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the map of every :class:`monai_attn.blocks.Gate` of a network while the block runs.

    The maps are detached from the graph and stay on their device. A second forward pass replaces those of the first.

    Args:
        network: the network to watch.

    Yields:
        a dictionary from the gate's path in the network to its map (B, C, *spatial), in the order of computation.

    Raises:
        ValueError: if the network has no gate, or is a scripted one, whose gates cannot be seen.

    Example:
        >>> from monai_attn.blocks import ChannelSpatialSE
        >>> block = ChannelSpatialSE(2, 8)
        >>> with capture_attention(block) as maps:
        ...     _ = block(torch.rand(1, 8, 16, 16))
        >>> {name: tuple(attention.shape) for name, attention in maps.items()}
        {'channel.gate': (1, 8, 1, 1), 'spatial.gate': (1, 1, 16, 16)}
    """
    maps: dict[str, torch.Tensor] = {}
    gates = {name: module for name, module in network.named_modules() if isinstance(module, Gate)}
    if not gates:
        raise ValueError(
            f"{type(network).__name__} has no attention gate; capture needs a network in eager mode with at least one "
            "block of monai_attn.blocks (for the networks of scSE: se other than None)."
        )

    def keep(name: str, _module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        maps.pop(name, None)
        maps[name] = output.detach()

    hooks = [gate.register_forward_hook(partial(keep, name)) for name, gate in gates.items()]
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
