# SPDX-License-Identifier: Apache-2.0
"""The attention maps of every case of an inference, beside its segmentation."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from monai.utils import CommonKeys
from torch import nn

from monai_attn.handlers.pictures import CasePictures, to_ras
from monai_attn.visualize import GateMaps, figures
from monai_attn.visualize.save import attention_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AttentionMaps"]


class AttentionMaps(CasePictures):
    """Put a network's spatial attention maps into the output of an evaluator, and draw ``<case>_attention.png``.

    The maps (:class:`monai_attn.visualize.GateMaps`) stand beside the prediction, so that
    :func:`monai_attn.visualize.save_attention`, at the end of the post-processing, brings them back to the image's
    grid and saves them. The network runs once more for them, in the same windows or slices.

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

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        super().attach(engine)
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self._add)

    def _add(self, engine: Engine) -> None:
        """Add the maps of the batch that the evaluator has just segmented."""
        output: Any = engine.state.output
        image = output[CommonKeys.IMAGE]
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
