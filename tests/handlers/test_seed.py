# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.transforms import RandGaussianNoise
from torch.utils.data import ConcatDataset

from monai_attn.handlers import EpochSeed, seed


def draws(
    *, number: int = 0, workers: int = 0, epochs: int = 3, spoil: bool = False, copies: int = 1
) -> list[list[float]]:
    """What the epochs of a training draw from each source of random numbers."""
    dataset = Dataset([torch.zeros(1, 4)] * 4, RandGaussianNoise(prob=1.0))
    loader = DataLoader(ConcatDataset([dataset] * copies), batch_size=1, shuffle=True, num_workers=workers)
    drawn: list[list[float]] = []

    def step(engine, batch):
        numbers = [batch.sum().item(), torch.rand(1).item(), np.random.rand(), random.random()]
        drawn[-1] += numbers
        if spoil:  # as a validation within the training might
            torch.rand(3)
            np.random.rand(3)

    engine = Engine(step)
    engine.data_loader = loader
    engine.add_event_handler("EPOCH_STARTED", lambda: drawn.append([]))
    EpochSeed(number).attach(engine)
    engine.run(loader, max_epochs=epochs)
    return drawn


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_draws_the_same_in_every_training_and_each_epoch_its_own(workers):
    first = draws(workers=workers)
    torch.rand(5)
    np.random.rand(5)
    assert draws(workers=workers, epochs=2) == first[:2]
    assert first[0] != first[1] != first[2]
    assert all(a != b for a, b in zip(first[0], first[1]))


def test_transforms_are_found_in_a_data_set_that_is_repeated():
    assert draws(copies=2) == draws(copies=2)


def test_seeds_and_processes_draw_differently(monkeypatch):
    first = draws(epochs=1)
    assert draws(number=1, epochs=1) != first
    monkeypatch.setattr(seed.idist, "get_rank", lambda: 1)
    assert draws(epochs=1) != first
