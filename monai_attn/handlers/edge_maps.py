# SPDX-License-Identifier: Apache-2.0
"""Where EG-CNN sees an edge, as an image beside the segmentation."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.inferers import Inferer
from monai.networks.utils import eval_mode
from monai.utils import CommonKeys

from monai_attn.nets.egcnn import EGCNN

__all__ = ["EdgeMaps"]


class EdgeMaps:
    """Put the edge probabilities of an EG-CNN into the output of an evaluator.

    They stand beside the prediction, so the transforms after it bring them back to the image's grid (``Invertd``) and
    save them (``SaveResultd``). The network runs once more for them: inferers of MONAI stitch one output at a time.

    Args:
        network: the network, not wrapped.
        inferer: that of the evaluator.
        key: where to put the probabilities (B, edge classes, *spatial), float32.

    Raises:
        TypeError: if the network has no edge stream.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[EdgeMaps(network, inferer)])``
    """

    def __init__(self, network: EGCNN, inferer: Inferer, key: str = "edges") -> None:
        if not isinstance(network, EGCNN):
            raise TypeError(f"network must be an EGCNN, got {type(network).__name__}, which has no edges to map.")
        self.network = network
        self.inferer = inferer
        self.key = key

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Add the edges of the batch that the evaluator has just segmented."""
        output: Any = engine.state.output
        image = output[CommonKeys.IMAGE]
        with eval_mode(self.network), torch.autocast("cuda", enabled=getattr(engine, "amp", False)):
            edges = self.inferer(image, self.network.edges)
        edges = torch.as_tensor(edges).float()
        output[self.key] = MetaTensor(edges, meta=image.meta) if isinstance(image, MetaTensor) else edges
