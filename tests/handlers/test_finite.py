# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedTrainer

from monai_attn.errors import DataError
from monai_attn.handlers import StopOnNonFinite


def trainer(values: list[float], *, named: bool = True, lr: float = 0.1, **options) -> SupervisedTrainer:
    """A trainer whose images hold one value each."""
    images = [torch.full((1, 2, 2), value) for value in values]
    if named:
        images = [MetaTensor(x, meta={"filename_or_obj": f"/secret/case{i}.nii.gz"}) for i, x in enumerate(images)]
    network = torch.nn.Conv2d(1, 1, 1)
    return SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=DataLoader(
            Dataset([{"image": image, "label": torch.zeros(1, 2, 2)} for image in images]), batch_size=2
        ),
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=lr),
        loss_function=torch.nn.MSELoss(),
        train_handlers=[StopOnNonFinite()],
        decollate=False,
        **options,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_the_first_loss_that_is_not_finite_stops_the_training_with_the_cases_and_keeps_the_weights(value):
    engine = trainer([1.0, 1.0, 1.0, value])
    with pytest.raises(DataError) as caught:
        engine.run()
    assert caught.value.what == "the cases case2, case3"
    assert "in iteration 2 (epoch 1)" in caught.value.problem
    assert all(weight.isfinite().all() for weight in engine.network.parameters())


def test_batches_without_names_are_reported_too():
    with pytest.raises(DataError, match="cannot use the batch\n  problem: their loss is nan"):
        trainer([float("nan"), 1.0], named=False).run()


def test_weights_that_are_not_finite_are_found_when_the_epoch_ends():
    engine = trainer([1e3, 1e3], lr=3e38)  # the loss is that of the step before
    with pytest.raises(DataError, match="NaN or infinite behind epoch 1"):
        engine.run()


def test_finite_trainings_run_to_their_end():
    engine = trainer([1.0, 2.0, 3.0])
    engine.run()
    assert engine.state.epoch == 2


def test_a_step_that_is_left_out_for_infinite_gradients_is_no_error():
    engine = trainer([1.0, 1.0])

    class Scaler:
        """A gradient scaler that finds infinite gradients every time."""

        scale = staticmethod(lambda loss: loss * float("inf"))
        step = update = staticmethod(lambda *_: None)

    @engine.on(Events.STARTED)
    def simulate_amp():
        engine.amp, engine.scaler = True, Scaler()

    before = [weight.clone() for weight in engine.network.parameters()]
    engine.run()
    assert engine.state.epoch == 2
    assert all(map(torch.equal, before, engine.network.parameters()))
