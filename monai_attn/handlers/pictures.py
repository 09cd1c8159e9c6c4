# SPDX-License-Identifier: Apache-2.0
"""Save overlays of cases and training curves."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.handlers import MetricLogger, from_engine
from monai.transforms import Compose, LoadImage
from monai.utils import CommonKeys, ImageMetaKey, MetaKeys, ensure_tuple

from monai_attn.data.datalist import case_name, case_names
from monai_attn.data.reader import CheckingReader
from monai_attn.files import atomic_write
from monai_attn.handlers.checkpoint import keep_state
from monai_attn.transforms.grid import fit_channels
from monai_attn.visualize import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CasePictures", "CurveSaver", "OverlaySaver"]


def names_of(engine: Engine) -> dict[str, str]:
    """Return the names of an engine's cases by image file.

    Example:
        ``names_of(evaluator)["scans/case_1.nii.gz"]``
    """
    items = getattr(getattr(engine.state.dataloader, "dataset", None), "data", [])
    return case_names(str(ensure_tuple(item[CommonKeys.IMAGE])[0]) for item in items)


class CasePictures:
    """Save a picture per case; subclasses implement ``draw``.

    Predictions and labels must have been inverted to the grid of the image file (``Invertd``). The picture is written
    beside the prediction if ``SafeSaveImaged`` has saved it, else to ``output_dir``. A subclass sets ``ending``, the
    end of the file's name, and may set ``write``, transforms that write further files.

    Args:
        output_dir: folder for pictures of predictions that are not saved.
        class_names: names of the classes 1, 2, …

    Example:
        :class:`OverlaySaver` and :class:`AttentionMaps` are subclasses.
    """

    ending = ".png"
    write = Compose([])

    def __init__(self, output_dir: str, class_names: Sequence[str] = ()) -> None:
        self.output_dir = Path(output_dir)
        self.class_names = class_names
        self.names: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator; a drawing error fails its case."""
        engine.add_event_handler(Events.STARTED, self._name)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def draw(self, image: MetaTensor, masks: Mapping[str, torch.Tensor], case: Mapping[str, Any], title: str) -> Figure:
        """Draw the picture of a case, the evaluator's output.

        ``masks`` are label maps (1, *spatial) of truth (if any) and prediction, on the grid of the image file.
        """
        raise NotImplementedError

    def _name(self, engine: Engine) -> None:
        self.names = names_of(engine)

    def __call__(self, engine: Engine) -> None:
        """Draw the cases that the evaluator has just segmented."""
        state: Any = engine.state
        for case in state.output:
            self._write(case)

    def _write(self, case: Mapping[str, Any]) -> None:
        meta = case[CommonKeys.PRED].meta
        path = str(meta[ImageMetaKey.FILENAME_OR_OBJ])
        picture = self.output_dir / f"{self.names.get(path, case_name(path))}{self.ending}"
        if MetaKeys.SAVED_TO in meta:
            picture = self.path_beside(meta[MetaKeys.SAVED_TO], path)
        image = LoadImage(image_only=True, ensure_channel_first=True)(path, CheckingReader())
        image = fit_channels(image, 3 if len(image) == 4 else None)
        masks = {"truth": case.get(CommonKeys.LABEL), "prediction": case[CommonKeys.PRED]}
        # a prediction may have lost its channel dimension
        placed = {name: m if m.ndim == image.ndim else m[None] for name, m in masks.items() if m is not None}
        figures.save(self.draw(image, placed, case, picture.name.removesuffix(self.ending)), picture)

    def path_beside(self, result: str | Path, image: str) -> Path:
        """Return the path of a picture beside the saved result."""
        return Path(result).with_name(f"{case_name(image)}{self.ending}")


class OverlaySaver(CasePictures):
    """Save ``<case>_overlay.png`` with image, label and prediction.

    Volumes are shown in three planes, with the errors of the prediction. The arguments are those of
    :class:`CasePictures`.

    Example:
        ``SupervisedEvaluator(..., val_handlers=[OverlaySaver("out", class_names=["liver"])])``
    """

    ending = "_overlay.png"

    def draw(self, image: MetaTensor, masks: Mapping[str, torch.Tensor], case: Mapping[str, Any], title: str) -> Figure:
        """Draw image, truth if there is one, and prediction."""
        figure = figures.three_planes if image.ndim == 4 else figures.overlay
        return figure(image, masks, title=title, class_names=self.class_names)


class CurveSaver(MetricLogger):
    """Save training curves as ``curves.csv`` and ``curves.png``.

    They hold the loss and the evaluator's metrics, after every validation and at the end of the training.

    Example:
        ``SupervisedTrainer(..., train_handlers=[CurveSaver("out", evaluator)])``
    """

    def __init__(self, output_dir: str, evaluator: Engine | None = None) -> None:
        super().__init__(loss_transform=from_engine(CommonKeys.LOSS, first=True), evaluator=evaluator)
        self.output_dir = Path(output_dir)
        if evaluator is not None:
            evaluator.add_event_handler(Events.COMPLETED, self._write)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer."""
        super().attach(engine)
        keep_state(engine, "curves", self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def state_dict(self) -> dict[str, Any]:
        """Return the curves, tensors (points, 2) of iteration and value."""
        curves = {"loss": self.loss, **{f"metric {name}": values for name, values in self.metrics.items()}}
        return {name: torch.tensor(values, dtype=torch.float64).reshape(-1, 2) for name, values in curves.items()}

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Restore the curves."""
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
