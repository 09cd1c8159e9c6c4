# SPDX-License-Identifier: Apache-2.0
import csv

import pytest
import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import IterationEvents
from monai.transforms import SaveImage
from PIL import Image

from monai_attn.handlers import CurveSaver, OverlaySaver


def draw(cases_of, saver, data=(1,)):
    """Do what an evaluator does once the post-processing is done."""

    def segment(engine, batch):
        engine.state.output = cases_of(batch)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    engine = Engine(segment)
    engine.register_events(*IterationEvents)
    saver.attach(engine)
    engine.run(data)


def prediction(path, *shape, **meta):
    return {"pred": MetaTensor(torch.ones(*shape), meta={"filename_or_obj": str(path), **meta})}


@pytest.mark.parametrize("label", [{"label": MetaTensor(torch.ones(1, 8, 9, 10))}, {"label": None}, {}])
def test_a_picture_is_drawn_for_each_case_with_or_without_a_label(tmp_path, label):
    SaveImage(print_log=False)(MetaTensor(torch.rand(1, 8, 9, 10)), filename=str(tmp_path / "case_1"))
    case = {**prediction(tmp_path / "case_1.nii.gz", 1, 8, 9, 10), **label}
    draw(lambda _: [case], OverlaySaver(str(tmp_path / "out"), class_names=["one"]))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["case_1_overlay.png"]


def test_files_of_one_name_in_two_folders_have_a_picture_each(tmp_path):
    cases = [{"image": str(tmp_path / folder / "t1.png")} for folder in ("a", "b")]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("L", (12, 8)).save(tmp_path / folder / "t1.png")
    saver = OverlaySaver(str(tmp_path / "out"))
    # without a channel dimension, as it is written
    draw(lambda batch: [prediction(batch["image"][0], 12, 8)], saver, DataLoader(Dataset(cases)))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a_t1_overlay.png", "b_t1_overlay.png"}


def test_a_picture_stands_beside_its_result(tmp_path):
    for name in ("a", "b"):
        Image.new("L", (12, 8)).save(tmp_path / f"{name}.png")
    saver = OverlaySaver("nowhere")
    result = {"saved_to": str(tmp_path / "results" / "x_seg.png")}
    cases = [[prediction(tmp_path / f"{name}.png", 1, 12, 8, **result) for name in names] for names in ("a", "b")]
    draw(lambda batch: cases[batch], saver, [0, 1])
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"a_overlay.png", "b_overlay.png"}


def test_curves_hold_the_loss_of_every_iteration_and_every_validation(tmp_path):
    evaluator = Engine(lambda engine, batch: None)
    evaluator.add_event_handler(Events.COMPLETED, lambda: evaluator.state.metrics.update(dice=0.75))
    trainer = Engine(lambda engine, batch: [{"loss": float(batch)}])
    saver = CurveSaver(str(tmp_path), evaluator)
    saver.attach(trainer)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run([1]))
    trainer.run([3, 2], max_epochs=2)
    before = (tmp_path / "curves.csv").read_text()
    rows = [tuple(row.values()) for row in csv.DictReader(before.splitlines())]
    assert rows[:4] == [("1", "loss", "3.0"), ("2", "loss", "2.0"), ("3", "loss", "3.0"), ("4", "loss", "2.0")]
    assert rows[4:] == [("2", "dice", "0.75"), ("4", "dice", "0.75")]
    assert (tmp_path / "curves.png").stat().st_size > 1000

    saver.metrics["dice"].append((1, "no number"))  # a table stays whole where writing it fails
    with pytest.raises(ValueError, match="could not convert"):
        evaluator.run([1])
    assert (tmp_path / "curves.csv").read_text() == before
    assert list(tmp_path.glob(".partial-*")) == []
