# SPDX-License-Identifier: Apache-2.0
"""The attention maps of every case of an inference, beside its segmentation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from monai.utils import CommonKeys
from torch import nn

from monai_attn.handlers.pictures import CasePictures, to_ras
from monai_attn.inferers import LayerwiseInferer
from monai_attn.visualize import GateMaps, figures
from monai_attn.visualize.save import attention_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AttentionMaps"]


class AttentionMaps(CasePictures):
    """Put a network's spatial attention maps into the output of an evaluator, and draw ``<case>_attention.png``.

    The maps (:class:`monai_attn.visualize.GateMaps`) stand beside the prediction, so that
    :func:`monai_attn.visualize.save_attention`, at the end of the post-processing, brings them back to the image's
    grid and saves them. The network runs once more for them, in the same windows or slices; only
    :class:`monai_attn.inferers.LayerwiseInferer` lets them be gathered while the evaluator's own run passes by.

    Args:
        network: the network, not wrapped.
        inferer: that of the evaluator.
        save_dir: see :class:`CasePictures`.
        spatial_dim: of a volume, the spatial axis to cut across for the picture: 0 sagittal, 1 coronal, 2 axial.
        class_names: names of the classes 1, 2, …

    Raises:
        ConfigError: if the network has no spatial gate, or is an exported one.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[AttentionMaps(network, inferer, "out")])``
    """

    ending = "_attention.png"

    def __init__(
        self,
        network: nn.Module,
        inferer: Inferer,
        save_dir: str,
        *,
        spatial_dim: int = 2,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__(save_dir, class_names, max_cases=sys.maxsize)
        self.network = network
        self.inferer = inferer
        self.spatial_dim = spatial_dim
        self.maps = GateMaps(network)
        self.slabs = _Slabs(self.maps)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        super().attach(engine)
        if isinstance(self.inferer, LayerwiseInferer):
            self.slabs.watch(engine)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._add)

    def _add(self, engine: Engine) -> None:
        """Add the maps of the batch that the evaluator has just segmented."""
        output: Any = engine.state.output
        image = output[CommonKeys.IMAGE]
        maps = self.slabs.joined(image)
        if maps is None:
            with eval_mode(self.network), torch.autocast("cuda", enabled=getattr(engine, "amp", False)):
                maps = self.maps.split(self.inferer(image, self.maps), image)
        for name, attention in maps.items():
            meta = image.meta if isinstance(image, MetaTensor) else None
            output[attention_key(name)] = MetaTensor(torch.as_tensor(attention).float(), meta=meta)

    def figure(
        self, image: MetaTensor, masks: Mapping[str, torch.Tensor], case: Mapping[str, MetaTensor], title: str
    ) -> Figure:
        """Image, prediction, and every map in the slice with the most of the prediction."""
        placed = {name: to_ras(case[attention_key(name)], image) for name in self.maps.names}
        return figures.overlay(
            image,
            masks,
            heatmaps={f"{name}, mm" if name in self.maps.layers else name: layer for name, layer in placed.items()},
            spatial_dim=self.spatial_dim,
            spacing=[float(size) for size in image.pixdim],
            title=f"{title}: attention",
            class_names=self.class_names,
        )


class _Slabs:
    """The choices of autofocus layers, gathered while an inferer runs them slab by slab over a volume."""

    def __init__(self, maps: GateMaps) -> None:
        self.maps = maps
        self.pieces: dict[str, list[torch.Tensor]] = {}

    def watch(self, engine: Engine) -> None:
        """See what passes by in every iteration of an engine."""
        if self.maps.names != list(self.maps.layers):
            return  # what is not a choice among scales has no pieces that fit
        for name, layer in self.maps.layers.items():
            layer.gate.register_forward_hook(self._keep(name))
        engine.add_event_handler(Events.ITERATION_STARTED, self._forget)

    def _forget(self, _engine: Engine) -> None:
        self.pieces = {}

    def _keep(self, name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, weights: torch.Tensor) -> None:
            self.pieces.setdefault(name, []).append(weights.argmax(dim=1, keepdim=True).to(torch.uint8).cpu())

        return hook

    def joined(self, image: torch.Tensor) -> dict[str, torch.Tensor] | None:
        """The maps of an image; None where no pieces passed by, or overlapping ones."""
        found = {name: _join(pieces, image.shape[2:]) for name, pieces in self.pieces.items()}
        self.pieces = {}
        if not found or any(piece is None for piece in found.values()):
            return None
        return {name: self.maps.scale(name, chosen, image) for name, chosen in found.items() if chosen is not None}


def _join(pieces: Sequence[torch.Tensor], size: torch.Size) -> torch.Tensor | None:
    """Put slabs side by side, along the dimension in which they are not as large as the image."""
    for dim in range(2, 2 + len(size)):
        if sum(piece.shape[dim] for piece in pieces) == size[dim - 2]:
            joined = torch.cat(list(pieces), dim=dim)
            if joined.shape[2:] == size:
                return joined
    return None
