# SPDX-License-Identifier: Apache-2.0
"""Capture, resize and name attention maps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import geometric_mean
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn

from monai_attn.blocks.autofocus import AutofocusConv, crop_border
from monai_attn.blocks.gate import Gate
from monai_attn.blocks.squeeze_excite import ChannelGate
from monai_attn.errors import ConfigError

__all__ = ["GateMaps", "capture_attention", "gate_title", "voxel_sizes"]


@contextmanager
def capture_attention(network: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Capture the attention maps of a network while it runs.

    Yields a dictionary from the path of every :class:`monai_attn.blocks.Gate` to its map (B, C, *spatial), detached, on
    its device and in the order of computation. A second forward pass replaces the maps of the first.

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
        fix = "capture needs a network in eager mode with a block of monai_attn.blocks"
        raise ValueError(f"{type(network).__name__} has no attention gate; {fix}.")

    def keep(name: str, _module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        maps.pop(name, None)
        maps[name] = output.detach()

    with ExitStack() as hooks:
        for name, gate in gates.items():
            hooks.enter_context(gate.register_forward_hook(partial(keep, name)))
        yield maps


_MODES = ("linear", "bilinear", "trilinear")


class GateMaps:
    """Compute spatial attention maps with an inferer.

    Pass it to an inferer instead of the network (not wrapped): a call returns all maps as channels of one tensor of the
    size of the window, and :meth:`split` splits the inferer's result. The maps, ``names``, are

    - for a sigmoid gate (the sSE of scSE, FocusNet, EG-CNN), the mean over its channels,
    - for an autofocus layer (``layers``), the scale with the largest weight, in mm from the kernel's center to its
      edge: the dilation times the voxel size (the geometric mean of the image's sides) of the layer's grid,
    - for a network with a method ``edges`` (:class:`monai_attn.nets.EGCNN`), also the probability of an edge.

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
        self.gates = {path.removesuffix(".gate"): gate for path, gate in gates.items()}
        if not self.gates:
            raise ConfigError(f"the attention of {type(network).__name__}", *_why_none(network))
        focusing = {module.gate: module for module in modules if isinstance(module, AutofocusConv)}
        self.layers = {name: focusing[gate] for name, gate in self.gates.items() if gate in focusing}
        self.has_edges = hasattr(type(network), "edges")
        edges = len(network.get_parameter("head.weight")) if self.has_edges else 0
        self.names = [*self.gates, *(["edges"] if edges == 1 else [f"edges_{i + 1}" for i in range(edges)])]
        self.strides = dict.fromkeys(self.layers, 1.0)
        self.crop, self.receptive_radius = getattr(network, "crop", 0), getattr(network, "receptive_radius", None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, *spatial) to maps (B, maps, *spatial)."""
        with capture_attention(self.network) as found:
            edges = [self.network.edges(x)] if self.has_edges else []
            if not edges:
                self.network(x)
        used = {path.removesuffix(".gate"): attention.float() for path, attention in found.items()}
        for name in self.gates:
            if name not in used:
                what = f"the attention of {type(self.network).__name__}"
                raise ConfigError(what, f"its gate {name} was not used", "give a network that uses all of its gates")
        size = torch.Size(side - 2 * self.crop for side in x.shape[2:])
        return torch.cat([*(self._resized(name, used[name], size) for name in self.gates), *edges], dim=1)

    def split(self, stitched: torch.Tensor, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Split a stack of maps by name.

        The maps (B, maps, *spatial) become (B, 1, *spatial), float32. The metadata of the image (B, C, *spatial) give
        the size of the voxels, else it is 1 mm. The weights of scales become the scale with the largest one.
        """
        widths = [len(self.layers[name].dilations) if name in self.layers else 1 for name in self.names]
        parts = dict(zip(self.names, torch.as_tensor(stitched).split(widths, dim=1)))
        for name, layer in self.layers.items():
            dilations = torch.tensor(layer.dilations, dtype=torch.float32, device=stitched.device)
            chosen = dilations[parts[name].argmax(dim=1, keepdim=True)]
            parts[name] = torch.stack([a * self.strides[name] * b for a, b in zip(chosen, voxel_sizes(image))])
        return parts

    def _resized(self, name: str, attention: torch.Tensor, size: torch.Size) -> torch.Tensor:
        if self.crop:
            attention = crop_border(attention, (attention.shape[2] - size[0]) // 2)
        if name in self.layers:
            self.strides[name] = geometric_mean(round(whole / part) for whole, part in zip(size, attention.shape[2:]))
        else:
            attention = attention.mean(dim=1, keepdim=True)
        return attention if attention.shape[2:] == size else F.interpolate(attention, size, mode=_MODES[len(size) - 1])


def voxel_sizes(image: torch.Tensor) -> list[float]:
    """Return each image's voxel size in mm.

    It is the geometric mean of the sides; 1 without metadata.
    """
    if not isinstance(image, MetaTensor):
        return [1.0] * len(image)
    pixdims = image.pixdim if image.is_batch else [image.pixdim] * len(image)
    return [geometric_mean(float(side) for side in sides[: image.ndim - 2]) for sides in pixdims]


# a level of MONAI's nested UNet or AttentionUnet, in which `recalibrate` or `autofocus` has put a block
_NESTED = re.compile(
    r"\bmodel\.((?:1\.submodule\.)*)(?:(0)|(2(?:\.\d(?=\.conv))?|1\.merge)|1\.submodule)"
    r"(?=\..*\b(?:recalibration|focus)\b)"
)
_WORDS = {"first": "layer 1", "second": "layer 2", "se1": "SE 1", "se2": "SE 2"}
_SILENT = {"block", "conv", "convs", "focus", "model", "recalibration", "trunk"}


def gate_title(path: str) -> str:
    """Return a title for the map of a gate.

    It is made of the gate's path in the network. The modules of a list are counted from 1, in its order, the levels of
    MONAI's ``UNet`` from the finest.

    Example:
        >>> gate_title("encoder_se.1.spatial.gate")
        'encoder 2, spatial'
        >>> gate_title("model.1.submodule.2.recalibration.channel.gate")
        'decoder 2, channel'
    """
    words: list[str] = []
    for part in re.sub(r"\bunit(?=\d)", "unit.", _NESTED.sub(_stage, path.removesuffix(".gate"))).split("."):
        if part.isdigit():
            word = words.pop().removesuffix("s") if words else "layer"
            words.append(f"{word}{'.' if word[-1].isdigit() else ' '}{int(part) + 1}")
        elif part not in _SILENT:
            spaced = re.sub(r"(?<=[a-z])(?=\d)", " ", part.removesuffix("_se")).strip("_").replace("_", " ")
            words.append(_WORDS.get(part, spaced))
    return ", ".join(words) or path


def _stage(place: re.Match[str]) -> str:
    levels, encoder, decoder = place.groups()
    if levels + (decoder or "") == "2":
        return "classifier"  # P4; the last up path of a UNet is also its classifier
    side = "encoder" if encoder else "decoder" if decoder else ""
    return f"{side}.{levels.count('submodule')}" if side else "bottleneck"


def _why_none(network: nn.Module) -> tuple[str, str]:
    if isinstance(network, torch.jit.ScriptModule):
        return "an exported network does not show its gates", "segment with the network itself, or do not ask for maps"
    return "it has no gate with a place in the image", "give a network with spatial attention, or do not ask for maps"
