# SPDX-License-Identifier: Apache-2.0
"""Save attention maps during inference and training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from monai.networks.utils import eval_mode
from monai.transforms import Compose, Invertd, InvertibleTransform, Transform
from monai.utils import CommonKeys, ImageMetaKey, optional_import
from torch import nn

from monai_attn.data.datalist import case_name
from monai_attn.errors import ConfigError
from monai_attn.files import atomic_write
from monai_attn.handlers.pictures import CasePictures
from monai_attn.inferers import SliceBatchInferer
from monai_attn.transforms import AsLabelMapd, SafeSaveImaged
from monai_attn.visualize import GateMaps, figures, gate_title
from monai_attn.visualize.figures.training import epoch_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AttentionMapHandler", "AttentionMaps"]

SummaryWriter, _ = optional_import("torch.utils.tensorboard", name="SummaryWriter")


class AttentionMaps(CasePictures):
    """Save and draw the spatial attention maps of every case.

    Each map of :class:`monai_attn.visualize.GateMaps` is written as ``<case>_attention_<path of the gate>`` on the grid
    of the image file; ``<case>_attention.png`` shows them all. In PNG files 255 means 1, and gray values of scale maps
    are the scales. The network (not wrapped) runs a second time for the maps, with the evaluator's inferer.

    Args:
        transform: the preprocessing, to be inverted.
        output_dir, output_ext, provenance: see :class:`monai_attn.transforms.SafeSaveImage`.
        spatial_dim: slicing axis for pictures of volumes: 0 sagittal, 1 coronal, 2 axial.
        class_names: names of the classes 1, 2, …

    Raises:
        ConfigError: if the network has no spatial gate, or is an exported one.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[AttentionMaps(network, inferer, preprocessing, "out")])``
    """

    ending = "_attention.png"

    def __init__(
        self,
        network: nn.Module,
        inferer: Inferer,
        transform: InvertibleTransform,
        output_dir: str,
        *,
        output_ext: str = ".nii.gz",
        provenance: Callable[[str], str] | None = None,
        spatial_dim: int = 2,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__(output_dir, class_names)
        self.network = network
        self.inferer = inferer
        self.spatial_dim = spatial_dim
        self.maps = GateMaps(network)
        self.amp = False
        in_gray = output_ext == ".png"
        files: dict[str, Any] = {"output_dir": output_dir, "output_ext": output_ext, "provenance": provenance}
        files["output_dtype"] = torch.uint8 if in_gray else torch.float32
        steps: list[Transform] = []
        writers: list[Transform] = []
        for name in self.maps.names:
            is_scale = name in self.maps.layers
            steps += [
                Invertd(name, transform, CommonKeys.IMAGE, nearest_interp=is_scale),
                AsLabelMapd(name, dtype=files["output_dtype"] if is_scale else torch.float32),
            ]
            scale = 255 if in_gray and not is_scale else None
            writers.append(SafeSaveImaged(name, output_postfix=f"attention_{name}", scale=scale, **files))
        self.postprocessing, self.write = Compose(steps), Compose(writers)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        super().attach(engine)
        self.amp = getattr(engine, "amp", False)

    def draw(self, image: MetaTensor, masks: Mapping[str, torch.Tensor], case: Mapping[str, Any], title: str) -> Figure:
        """Save the maps of a case and draw them."""
        maps = self.write({**self.compute(case[CommonKeys.IMAGE]), CommonKeys.IMAGE: case[CommonKeys.IMAGE]})
        titles = {name: gate_title(name) + (", mm" if name in self.maps.layers else "") for name in self.maps.names}
        return figures.overlay(
            image,
            masks,
            heatmaps={title: maps[name] for name, title in titles.items()},
            spatial_dim=self.spatial_dim,
            title=f"{title}: attention",
            class_names=self.class_names,
        )

    def compute(self, image: MetaTensor) -> dict[str, MetaTensor]:
        """Return the maps of a preprocessed image (C, *spatial) on its file's grid, by the names of their gates."""
        batch = image[None]
        with eval_mode(self.network), torch.autocast("cuda", enabled=self.amp):
            maps = self.maps.split(self.inferer(batch, self.maps), batch)
        layers = {name: MetaTensor(layer[0].float()) for name, layer in maps.items()}
        found = self.postprocessing({**layers, CommonKeys.IMAGE: image})
        return {name: found[name] for name in layers}


class AttentionMapHandler:
    """Save attention maps of a few slices after every epoch.

    ``epoch_<number>.npz`` holds the slices and, in half precision, one map per gate and case, to be drawn by
    :func:`monai_attn.visualize.figures.excitation_by_epoch`. For volumes it is the slice with the most foreground. The
    training is bitwise the same with and without the handler. Only the first process writes.

    Args:
        network: the network, not wrapped.
        dataset: a data set without random transforms, such as that of the validation; its first cases are used.
        output_dir: folder for the files. Files of later epochs, left by another training, are removed.
        inferer: inferer such as that of the validation; by default ``SimpleInferer``.
        cases, interval: number of cases, and of epochs between files; the first epoch always has one.
        spatial_dim: slicing axis for volumes: 0 sagittal, 1 coronal, 2 axial.
        log_dir: folder for TensorBoard pictures, if wanted.

    Raises:
        ConfigError: if ``cases`` or ``interval`` is below 1, or the network has no spatial gate.

    Example:
        ``SupervisedTrainer(..., train_handlers=[AttentionMapHandler(network, validation_set, "out/attention")])``
    """

    def __init__(
        self,
        network: nn.Module,
        dataset: Any,
        output_dir: str,
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
        self.output_dir = Path(output_dir)
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
        arrays: dict[str, np.ndarray] = {}
        for shown in self.slices:
            maps = self._maps_of(shown)
            arrays[f"image/{shown.name}"] = shown.of(shown.case).half().numpy()
            arrays[f"view/{shown.name}"] = np.array(json.dumps(shown.view))
            arrays |= {f"map/{shown.name}/{gate}": layer.half().numpy() for gate, layer in maps.items()}
            if self.log_dir is not None:
                self._log(shown, maps, epoch)
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.output_dir / f"epoch_{epoch:04}.npz") as draft, draft.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        for number, path in epoch_files(self.output_dir).items():
            if number > epoch:
                path.unlink()

    def _slice(self, case: Any, number: int) -> _Slice:
        """Choose a slice; crop to it if the inferer allows."""
        image, label = case[CommonKeys.IMAGE], case[CommonKeys.LABEL]
        meta = image.meta if isinstance(image, MetaTensor) else {}
        name = case_name(str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, f"case_{number}")))
        view, index = figures.slice_view(image, self.spatial_dim), None
        if image.ndim == 4:
            index = figures.best_slice(label, self.spatial_dim)
            if isinstance(self.inferer, SliceBatchInferer) and self.inferer.axis == self.spatial_dim + 2:
                image, index = image.narrow(self.spatial_dim + 1, index, 1), 0  # it needs no other slice
        return _Slice(name, image, self.spatial_dim + 1, index, view)

    def _maps_of(self, shown: _Slice) -> dict[str, torch.Tensor]:
        batch = shown.case[None].to(next(self.network.parameters()).device)
        with eval_mode(self.network):
            maps = self.maps.split(self.inferer(batch, self.maps), batch)
        return {gate: shown.of(layer[0]) for gate, layer in maps.items()}

    def _log(self, shown: _Slice, maps: Mapping[str, torch.Tensor], epoch: int) -> None:
        layers = {gate: layer[None] for gate, layer in maps.items()}
        figure = figures.attention_grid(shown.of(shown.case), layers, title=f"epoch {epoch}", view=shown.view)
        with SummaryWriter(log_dir=self.log_dir) as writer:
            writer.add_figure(f"attention/{shown.name}", figure, epoch)


class _Slice(NamedTuple):
    """A slice of a volume, or a whole 2D image."""

    name: str
    case: torch.Tensor
    axis: int
    place: int | None
    view: figures.View

    def of(self, layer: torch.Tensor) -> torch.Tensor:
        """Select the slice from a layer (C, *spatial)."""
        layer = torch.as_tensor(layer).cpu()
        return layer if self.place is None else layer.select(self.axis, self.place)
