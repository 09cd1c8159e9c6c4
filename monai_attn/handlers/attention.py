# SPDX-License-Identifier: Apache-2.0
"""How attention comes about in a training: the maps of a few slices after every epoch, as in Fig. 7 of scSE."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from monai.networks.utils import eval_mode
from monai.utils import CommonKeys, ImageMetaKey, optional_import
from torch import nn

from monai_attn.data.datalist import case_name
from monai_attn.errors import ConfigError
from monai_attn.files import atomic_write
from monai_attn.inferers import SliceBatchInferer
from monai_attn.visualize import GateMaps, figures

__all__ = ["AttentionMapHandler"]

SummaryWriter, _ = optional_import("torch.utils.tensorboard", name="SummaryWriter")

_EPOCH = re.compile(r"epoch_(\d+)\.npz")


class AttentionMapHandler:
    """Save the spatial attention maps of a few slices after the epochs of a training, for what comes of them.

    ``epoch_<number>.npz`` holds the maps in half precision, one for each gate and case, and the slices that they
    belong to; :func:`monai_attn.visualize.figures.excitation_by_epoch` draws them. A file is small.
    The slices are the same all the time: of a volume the one with the most of the label. The handler draws no random
    number and leaves the network as it was, so that a training with it gives bitwise what it gives without. Of several
    processes the first one does all of it.

    Args:
        network: the network, not wrapped.
        dataset: where the cases come from, the first of which are used; without random transforms, such as that of the
            validation.
        save_dir: folder to write to. Files of later epochs that another training left there are removed.
        inferer: how the network sees a case, such as that of the validation; by default as a whole.
        cases: number of cases.
        spatial_dim: of volumes, the spatial axis to cut across: 0 sagittal, 1 coronal, 2 axial.
        interval: number of epochs between files; the first epoch always has one.
        log_dir: folder of TensorBoard files; the pictures are written there too if it is given.

    Raises:
        ConfigError: if ``cases`` or ``interval`` is below 1, or the network has no spatial gate.

    Example:
        ``SupervisedTrainer(..., train_handlers=[AttentionMapHandler(network, validation_set, "out/attention")])``
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Any,
        save_dir: str,
        *,
        inferer: Inferer | None = None,
        cases: int = 2,
        spatial_dim: int = 2,
        interval: int = 1,
        log_dir: str | None = None,
    ) -> None:
        for name, value in {"cases": cases, "interval": interval}.items():
            if value < 1:
                raise ConfigError(f"{name} of AttentionMapHandler", f"expected 1 or more, got {value}", "leave it out")
        self.network = network
        self.maps = GateMaps(network)
        self.dataset = dataset
        self.save_dir = Path(save_dir)
        self.inferer = inferer or SimpleInferer()
        self.cases = cases
        self.spatial_dim = spatial_dim
        self.interval = interval
        self.log_dir = log_dir
        self.slices: list[_Slice] = []

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Save the maps of the epoch that has just ended."""
        epoch = engine.state.epoch
        if epoch > 1 and epoch % self.interval:
            return
        if not self.slices:
            self.slices = [self._slice(self.dataset[n], n) for n in range(min(self.cases, len(self.dataset)))]
        self.save_dir.mkdir(parents=True, exist_ok=True)
        maps = [self._maps_of(chosen) for chosen in self.slices]
        arrays: dict[str, np.ndarray] = {}
        for chosen, of_gates in zip(self.slices, maps):
            arrays[f"image/{chosen.name}"] = chosen.shown.half().numpy()
            arrays[f"view/{chosen.name}"] = np.array(json.dumps(chosen.view))
            arrays |= {f"map/{chosen.name}/{gate}": layer.half().numpy() for gate, layer in of_gates.items()}
        with atomic_write(self.save_dir / f"epoch_{epoch:04}.npz") as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        for path in self.save_dir.glob("epoch_*.npz"):
            if (number := _EPOCH.fullmatch(path.name)) and int(number[1]) > epoch:
                path.unlink()
        if self.log_dir is not None:
            self._log(maps, epoch)

    def _slice(self, case: Any, number: int) -> _Slice:
        """What of a case is shown, and what of it the network has to see for that."""
        image, label = case[CommonKeys.IMAGE], case[CommonKeys.LABEL]
        meta = image.meta if isinstance(image, MetaTensor) else {}
        name = case_name(str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, f"case_{number}")))
        view = figures.slice_view(image, self.spatial_dim)
        if image.ndim == 3:
            return _Slice(name, image, torch.as_tensor(image).cpu(), None, view)
        axis, index = self.spatial_dim + 1, figures.best_slice(label, self.spatial_dim)
        shown = torch.as_tensor(image).select(axis, index).cpu()
        if isinstance(self.inferer, SliceBatchInferer) and self.inferer.axis == axis + 1:  # it needs no other slice
            return _Slice(name, image.narrow(axis, index, 1), shown, 0, view)
        return _Slice(name, image, shown, index, view)

    def _maps_of(self, chosen: _Slice) -> dict[str, torch.Tensor]:
        device = next(self.network.parameters()).device
        image = chosen.seen[None].to(device)
        with eval_mode(self.network):
            maps = self.maps.split(self.inferer(image, self.maps), image)
        layers = {gate: torch.as_tensor(layer)[0].cpu() for gate, layer in maps.items()}
        if chosen.place is None:
            return layers
        return {gate: layer.select(self.spatial_dim + 1, chosen.place) for gate, layer in layers.items()}

    def _log(self, maps: Sequence[dict[str, torch.Tensor]], epoch: int) -> None:
        with SummaryWriter(log_dir=self.log_dir) as writer:
            for chosen, of_gates in zip(self.slices, maps):
                layers = {gate: layer[None] for gate, layer in of_gates.items()}
                figure = figures.attention_grid(chosen.shown, layers, title=f"epoch {epoch}", view=chosen.view)
                writer.add_image(f"attention/{chosen.name}", figures.pixels(figure), epoch, dataformats="HWC")


class _Slice(NamedTuple):
    name: str
    seen: torch.Tensor
    shown: torch.Tensor
    place: int | None
    view: figures.View
