# SPDX-License-Identifier: Apache-2.0
"""Attention maps of a network: capture them, and bring spatial ones to the image's grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn

from monai_attn.blocks.autofocus import AutofocusConv
from monai_attn.blocks.gate import Gate
from monai_attn.blocks.squeeze_excite import ChannelGate
from monai_attn.errors import ConfigError

__all__ = ["GateMaps", "capture_attention", "voxel_sizes"]


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


_MODES = ("linear", "bilinear", "trilinear")


class GateMaps:
    """The spatial attention maps of a network, to be called by an inferer in place of the network.

    A call gives all maps as channels of one tensor of the size of the window, so that sliding windows, batches of
    slices and the like put maps together as they do logits; :meth:`split` takes the result apart. The maps are

    - of a sigmoid gate (the sSE of scSE, FocusNet, EG-CNN) the mean over its channels,
    - of an autofocus layer the scale with the largest weight, in mm: how far its kernel reaches from its centre, which
      is the dilation times the voxel size (the geometric mean, where voxels have unequal sides) of the layer's grid,
    - of a network with a method ``edges`` (:class:`monai_attn.nets.EGCNN`) also the probability of an edge.

    Channel excitation has no place in the image, and no map here.

    Args:
        network: the network, not wrapped.

    Attributes:
        names: the maps: the paths of their gates without ``.gate``, and ``edges``.
        layers: of those that are scales, the layer.

    Raises:
        ConfigError: if the network has no spatial gate, or is an exported one; when called, if a gate was not used.

    Example:
        >>> from monai_attn.blocks import ChannelSpatialSE
        >>> maps, image = GateMaps(torch.nn.Sequential(ChannelSpatialSE(2, 3))), torch.rand(1, 3, 8, 8)
        >>> {name: tuple(attention.shape) for name, attention in maps.split(maps(image), image).items()}
        {'0.spatial': (1, 1, 8, 8)}
    """

    def __init__(self, network: nn.Module) -> None:
        self.network: Any = network
        modules = list(network.modules())
        skipped = {module.gate for module in modules if isinstance(module, ChannelGate)}
        gates = {path: part for path, part in network.named_modules() if isinstance(part, Gate) and part not in skipped}
        self.gates = {_short(path): gate for path, gate in gates.items()}
        if not self.gates:
            raise ConfigError(f"the attention of {type(network).__name__}", *_why_none(network))
        focusing = {module.gate: module for module in modules if isinstance(module, AutofocusConv)}
        self.layers = {name: focusing[gate] for name, gate in self.gates.items() if gate in focusing}
        self.has_edges = hasattr(type(network), "edges")
        edges = len(network.get_parameter("head.weight")) if self.has_edges else 0
        self.names = [*self.gates, *(["edges"] if edges == 1 else [f"edges_{i + 1}" for i in range(edges)])]
        self.strides = dict.fromkeys(self.layers, 1.0)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image or a window (B, C, *spatial) to its maps (B, maps, *spatial), of every scale the weight."""
        with capture_attention(self.network) as found:
            edges = [self.network.edges(x)] if self.has_edges else []
            if not edges:
                self.network(x)
        used = {_short(path): attention.float() for path, attention in found.items()}
        for name in self.gates:
            if name not in used:
                what = f"the attention of {type(self.network).__name__}"
                raise ConfigError(what, f"its gate {name} was not used", "give a network that uses all of its gates")
        return torch.cat([*(self._resized(name, used[name], x.shape[2:]) for name in self.gates), *edges], dim=1)

    def split(self, stitched: torch.Tensor, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Take apart what calls have given.

        Args:
            stitched: the maps (B, maps, *spatial) of an image.
            image: the image (B, C, *spatial), whose metadata tell the size of the voxels; 1 mm without.

        Returns:
            the maps (B, 1, *spatial) by their names, float32, and a scale for the weights of scales.
        """
        widths = [len(self.layers[name].dilations) if name in self.layers else 1 for name in self.names]
        parts = dict(zip(self.names, torch.as_tensor(stitched).split(widths, dim=1)))
        for name, layer in self.layers.items():
            dilations = torch.tensor(layer.dilations, dtype=torch.float32, device=stitched.device)
            chosen = dilations[parts[name].argmax(dim=1, keepdim=True)]
            parts[name] = torch.stack([a * self.strides[name] * b for a, b in zip(chosen, voxel_sizes(image))])
        return parts

    def _resized(self, name: str, attention: torch.Tensor, size: torch.Size) -> torch.Tensor:
        if name in self.layers:
            self.strides[name] = geometric_mean(round(whole / part) for whole, part in zip(size, attention.shape[2:]))
        else:
            attention = attention.mean(dim=1, keepdim=True)
        return attention if attention.shape[2:] == size else F.interpolate(attention, size, mode=_MODES[len(size) - 1])


def voxel_sizes(image: torch.Tensor) -> list[float]:
    """Return the geometric mean of the sides of a voxel of every image of a batch, in mm; 1 without metadata."""
    if not isinstance(image, MetaTensor):
        return [1.0] * len(image)
    pixdims = image.pixdim if image.is_batch else [image.pixdim] * len(image)
    return [geometric_mean(float(side) for side in sides[: image.ndim - 2]) for sides in pixdims]


def _short(path: str) -> str:
    return path.removesuffix(".gate")


def _why_none(network: nn.Module) -> tuple[str, str]:
    if isinstance(network, torch.jit.ScriptModule):
        return "an exported network does not show its gates", "segment with the network itself, or do not ask for maps"
    return "it has no gate with a place in the image", "give a network with spatial attention, or do not ask for maps"
