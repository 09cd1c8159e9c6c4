# SPDX-License-Identifier: Apache-2.0
"""Pictures of the cases of an evaluator, and the curves of a training."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.handlers import MetricLogger
from monai.transforms import Compose, LoadImage
from monai.utils import CommonKeys, ImageMetaKey, MetaKeys, ensure_tuple

from monai_attn.data.datalist import case_name, case_names
from monai_attn.files import atomic_write
from monai_attn.handlers.checkpoint import keep_state
from monai_attn.handlers.training import training_loss
from monai_attn.visualize import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CasePictures", "CurveSaver", "OverlaySaver"]


class CasePictures:
    """Write a picture for each case of an evaluator; a subclass draws it in its method ``draw``.

    The picture is drawn on the grid of the image file, so the prediction (and label) must have been brought back to
    it, as ``Invertd`` does. It is written beside the prediction where the metadata say where that is, as those of
    ``SafeSaveImaged`` do. Elsewhere the picture of a case that shares its name is named after its folder too.

    Args:
        output_dir: folder to write to where predictions are not saved.
        class_names: names of the classes 1, 2, …
        max_cases: number of cases to draw, from the first on; the others pass without a picture. Several processes
            share this number.

    Attributes:
        ending: what follows the name of the case in that of the picture.
        postprocessing: transforms that write further files of a case, without which it is not finished.

    Example:
        :class:`OverlaySaver` and :class:`AttentionMaps` are of this kind.
    """

    ending = ".png"
    postprocessing = Compose([])

    def __init__(self, output_dir: str, class_names: Sequence[str] = (), max_cases: int = 20) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = class_names
        self.max_cases = math.ceil(max_cases / idist.get_world_size())
        self.drawn = 0
        self.names: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator; pictures are drawn within its iteration, so that they fail with their case."""
        engine.add_event_handler(Events.STARTED, self._name)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def draw(self, image: MetaTensor, masks: Mapping[str, torch.Tensor], case: Mapping[str, Any], title: str) -> Figure:
        """Draw the picture of a case.

        Args:
            image: the image of the file (C, *spatial).
            masks: title to label map (1, *spatial), of the truth if there is one and of the prediction.
            case: the evaluator's output for it.
            title: its name.
        """
        raise NotImplementedError

    def _name(self, engine: Engine) -> None:
        """Find names for the cases of a data set; other sources of data have none in advance."""
        items = getattr(getattr(engine.state.dataloader, "dataset", None), "data", [])
        self.names = case_names(str(ensure_tuple(item[CommonKeys.IMAGE])[0]) for item in items)

    def __call__(self, engine: Engine) -> None:
        """Draw the cases that the evaluator has just segmented."""
        state: Any = engine.state
        for case in state.output[: self.max_cases - self.drawn]:
            self.drawn += 1
            self._write(case)

    def _write(self, case: Mapping[str, Any]) -> None:
        meta = case[CommonKeys.PRED].meta
        path = str(meta[ImageMetaKey.FILENAME_OR_OBJ])
        picture = self.output_dir / f"{self.names.get(path, case_name(path))}{self.ending}"
        if MetaKeys.SAVED_TO in meta:
            picture = self.path_beside(meta[MetaKeys.SAVED_TO], path)
        image = LoadImage(image_only=True, ensure_channel_first=True)(path)
        masks = {"truth": case.get(CommonKeys.LABEL), "prediction": case[CommonKeys.PRED]}
        # a prediction may have lost its channel dimension
        placed = {name: m if m.ndim == image.ndim else m[None] for name, m in masks.items() if m is not None}
        figures.save(self.draw(image, placed, case, picture.name.removesuffix(self.ending)), picture)

    def path_beside(self, result: str | Path, image: str) -> Path:
        """Return the path of the picture of an image file whose result is saved."""
        return Path(result).with_name(f"{case_name(image)}{self.ending}")


class OverlaySaver(CasePictures):
    """Write ``<case>_overlay.png`` for the cases of an evaluator: image, label if there is one, prediction.

    Of a volume it shows three planes through the structures, and what is wrong in the prediction. See
    :class:`CasePictures` for where it is written, and the arguments.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[OverlaySaver("out", class_names=["liver"])])``
    """

    ending = "_overlay.png"

    def draw(self, image: MetaTensor, masks: Mapping[str, torch.Tensor], case: Mapping[str, Any], title: str) -> Figure:
        """Draw image, truth if there is one, and prediction."""
        figure = figures.three_planes if image.ndim == 4 else figures.overlay
        return figure(image, masks, title=title, class_names=self.class_names)


class CurveSaver(MetricLogger):
    """Write ``curves.csv`` and ``curves.png`` after every validation and at the end of the training.

    Args:
        output_dir: folder to write to.
        evaluator: the engine whose metrics are drawn beside the loss.

    Example:
        ``SupervisedTrainer(..., train_handlers=[CurveSaver("out", evaluator)])``
    """

    def __init__(self, output_dir: str, evaluator: Engine | None = None) -> None:
        super().__init__(loss_transform=training_loss, evaluator=evaluator)
        self.output_dir = Path(output_dir)
        if evaluator is not None:
            evaluator.add_event_handler(Events.COMPLETED, self._write)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        super().attach(engine)
        keep_state(engine, "curves", self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def state_dict(self) -> dict[str, Any]:
        """Return the curves so far, as tensors (points, 2) of iteration and value."""
        curves = {"loss": self.loss, **{f"metric {name}": values for name, values in self.metrics.items()}}
        return {name: torch.tensor(values, dtype=torch.float64).reshape(-1, 2) for name, values in curves.items()}

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Take the curves of a training that goes on."""
        curves = {name: [(int(i), value) for i, value in points.tolist()] for name, points in state_dict.items()}
        self.loss[:] = curves.pop("loss")
        self.metrics.clear()
        self.metrics.update({name.removeprefix("metric "): points for name, points in curves.items()})

    def _write(self, _engine: Engine) -> None:
        if idist.get_rank() > 0 or not self.loss:
            return
        self.output_dir.mkdir(parents=True, exist_ok=True)
        path = self.output_dir / "curves.csv"
        with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["iteration", "name", "value"])
            for name, values in {"loss": self.loss, **self.metrics}.items():
                rows.writerows([iteration, name, float(value)] for iteration, value in values)
        figures.save(figures.training_curves(self.loss, self.metrics), path.with_suffix(".png"))
