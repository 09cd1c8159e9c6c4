# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ignite.engine import Engine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monai_attn.handlers import TensorBoardStats


def test_there_is_no_file_before_the_engine_starts(tmp_path):
    handler = TensorBoardStats(tmp_path / "out")
    handler.attach(Engine(lambda engine, batch: 0.0))
    assert not (tmp_path / "out").exists()


def test_one_file_holds_the_output_of_every_iteration_and_the_metrics_of_every_run(tmp_path):
    engine = Engine(lambda engine, batch: {"loss": batch})
    engine.state.metrics = {"dice": 0.5}
    TensorBoardStats(tmp_path, tag_name="train_loss", output_transform=lambda output: output["loss"]).attach(engine)
    engine.run([3.0, 2.0], max_epochs=1)
    engine.run([1.0], max_epochs=1)
    (file,) = tmp_path.iterdir()
    events = EventAccumulator(str(file)).Reload()
    assert [event.value for event in events.Scalars("train_loss")] == [3.0, 2.0, 1.0]
    assert {event.value for event in events.Scalars("dice")} == {0.5}
