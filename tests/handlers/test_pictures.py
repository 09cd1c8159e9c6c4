# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import IterationEvents
from monai.transforms import SaveImage
from PIL import Image

from monai_attn.handlers import CurveSaver, OverlaySaver, pictures


@pytest.fixture
def case(tmp_path) -> dict[str, MetaTensor]:
    image = MetaTensor(torch.rand(1, 8, 9, 10))
    SaveImage(print_log=False)(image, filename=str(tmp_path / "case_1"))
    prediction = MetaTensor(torch.ones(1, 8, 9, 10), meta={"filename_or_obj": str(tmp_path / "case_1.nii.gz")})
    return {"pred": prediction, "label": MetaTensor(torch.ones(1, 8, 9, 10))}


def evaluator(cases_of):
    """What an evaluator does once the post-processing is done."""

    def segment(engine, batch):
        engine.state.output = cases_of(batch)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    engine = Engine(segment)
    engine.register_events(*IterationEvents)
    return engine


@pytest.mark.parametrize("label", ["there", "absent", None])
def test_a_picture_is_drawn_for_each_case_with_or_without_a_label(case, tmp_path, label):
    if label == "absent":
        del case["label"]
    elif label is None:
        case["label"] = None
    engine = evaluator(lambda batch: [case])
    OverlaySaver(str(tmp_path / "out"), class_names=["one"]).attach(engine)
    engine.run([1])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case_1_overlay.png"]


def test_a_picture_without_a_channel_dimension_is_drawn(tmp_path):
    Image.new("L", (12, 8)).save(tmp_path / "scan.png")
    prediction = MetaTensor(torch.ones(12, 8), meta={"filename_or_obj": str(tmp_path / "scan.png")})
    engine = evaluator(lambda batch: [{"pred": prediction}])
    OverlaySaver(str(tmp_path / "out")).attach(engine)
    engine.run([1])
    assert (tmp_path / "out" / "scan_overlay.png").is_file()


def test_files_of_one_name_in_two_folders_have_a_picture_each(tmp_path):
    cases = []
    for folder in ("a", "b"):
        path = tmp_path / folder / "t1.png"
        path.parent.mkdir()
        Image.new("L", (12, 8)).save(path)
        cases.append({"image": str(path)})
    engine = evaluator(
        lambda batch: [{"pred": MetaTensor(torch.ones(1, 12, 8), meta={"filename_or_obj": batch["image"][0]})}]
    )
    OverlaySaver(str(tmp_path / "out")).attach(engine)
    engine.run(DataLoader(Dataset(cases)))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a_t1_overlay.png", "b_t1_overlay.png"}


def test_no_more_pictures_are_drawn_than_asked_for(case, tmp_path):
    engine = evaluator(lambda batch: [case, case])
    saver = OverlaySaver(str(tmp_path / "out"), max_cases=1)
    saver.attach(engine)
    engine.run([1, 2])
    assert saver.drawn == 1


def test_several_processes_share_the_number_of_pictures(monkeypatch):
    monkeypatch.setattr(pictures.idist, "get_world_size", lambda: 8)
    assert OverlaySaver("out", max_cases=20).max_cases == 3


def test_curves_hold_the_loss_of_every_iteration_and_every_validation(tmp_path):
    evaluator = Engine(lambda engine, batch: None)
    evaluator.add_event_handler(Events.COMPLETED, lambda: evaluator.state.metrics.update(dice=0.75))
    trainer = Engine(lambda engine, batch: {"loss": torch.tensor(float(batch))})
    CurveSaver(str(tmp_path), evaluator).attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([1]))
    trainer.run([3, 2], max_epochs=2)
    with open(tmp_path / "curves.csv") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows[:4] == [("1", "loss", "3.0"), ("2", "loss", "2.0"), ("3", "loss", "3.0"), ("4", "loss", "2.0")]
    assert rows[4:] == [("2", "dice", "0.75"), ("4", "dice", "0.75")]
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_table_of_curves_stays_whole_where_writing_it_fails(tmp_path):
    trainer = Engine(lambda engine, batch: {"loss": torch.tensor(float(batch))})
    saver = CurveSaver(str(tmp_path))
    saver.attach(trainer)
    trainer.run([1])
    before = (tmp_path / "curves.csv").read_text()
    saver.metrics["dice"].append((1, "no number"))
    with pytest.raises(ValueError, match="could not convert"):
        trainer.run([2])
    assert (tmp_path / "curves.csv").read_text() == before
    assert list(tmp_path.glob(".partial-*")) == []
