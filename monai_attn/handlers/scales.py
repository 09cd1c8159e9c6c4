# SPDX-License-Identifier: Apache-2.0
"""Which dilation every voxel chose, for each autofocus layer of a network."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.utils import CommonKeys
from torch import nn

from monai_attn.blocks.autofocus import AutofocusConv

__all__ = ["ScaleMaps"]


class ScaleMaps:
    """Put the scale maps of a network's autofocus layers into the output of an evaluator.

    The map of a layer holds the dilation with the largest weight at each voxel (Qin 2018, Fig. 4); the layers are the
    channels, from the first on. It stands beside the prediction, so the transforms after it bring it back to the
    image's grid (``Invertd``, nearest) and save it (``SaveResultd``). It works with the whole volume at once and with
    :class:`monai_attn.inferers.LayerwiseInferer`, whose slabs are put together; not with overlapping windows.

    Args:
        network: a network with :class:`monai_attn.blocks.AutofocusConv` layers.
        key: where to put the maps (layers, *spatial).

    Raises:
        ValueError: if the network has no autofocus layer, or when the pieces of a map do not make up the image.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[ScaleMaps(network)])``
    """

    def __init__(self, network: nn.Module, key: str = "scales") -> None:
        self.layers = [module for module in network.modules() if isinstance(module, AutofocusConv)]
        if not self.layers:
            raise ValueError(f"{type(network).__name__} has no autofocus layer, so there are no scales to map.")
        self.key = key
        self.pieces: list[list[torch.Tensor]] = [[] for _ in self.layers]

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        for index, layer in enumerate(self.layers):
            layer.gate.register_forward_hook(self._collect(index))
        engine.add_event_handler(Events.ITERATION_STARTED, self._start)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._finish)

    def _collect(self, index: int) -> Any:
        def hook(_module: nn.Module, _args: Any, weights: torch.Tensor) -> None:
            self.pieces[index].append(weights.argmax(dim=1, keepdim=True).to(torch.uint8).cpu())

        return hook

    def _start(self, _engine: Engine) -> None:
        self.pieces = [[] for _ in self.layers]

    def _finish(self, engine: Engine) -> None:
        output: Any = engine.state.output
        image = output[CommonKeys.IMAGE]
        maps = [
            torch.tensor(layer.dilations, dtype=torch.uint8)[_join(pieces, image.shape[2:]).long()]
            for layer, pieces in zip(self.layers, self.pieces)
        ]
        scales = torch.cat(maps, dim=1)
        output[self.key] = MetaTensor(scales, meta=image.meta) if isinstance(image, MetaTensor) else scales


def _join(pieces: list[torch.Tensor], size: torch.Size) -> torch.Tensor:
    """Put slabs side by side, along the dimension in which they are not as large as the image."""
    for dim in range(2, 2 + len(size)):
        if sum(piece.shape[dim] for piece in pieces) == size[dim - 2]:
            joined = torch.cat(pieces, dim=dim)
            if joined.shape[2:] == size:
                return joined
    raise ValueError(
        f"pieces of {[tuple(piece.shape[2:]) for piece in pieces[:3]]} … do not make up an image of {tuple(size)}; "
        "scale maps need inference of the whole volume or layer by layer, and a network that keeps the size."
    )
