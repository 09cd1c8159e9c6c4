# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events

from monai_attn.handlers import AverageStatistics, statistics


@pytest.fixture
def network():
    return torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))


def train(network, iterations=3):
    """Two epochs; returns the running means that the end of each epoch sees."""
    seen = []
    engine = Engine(lambda _engine, batch: network(batch))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(network[2].running_mean.clone()))
    AverageStatistics(network).attach(engine)
    torch.manual_seed(0)
    engine.run([torch.rand(2, 3, 4, 4) for _ in range(iterations)], max_epochs=2)
    return seen


def test_the_end_of_an_epoch_sees_the_mean_over_the_processes(network, monkeypatch):
    sums = []

    def add_another_process(total):
        sums.append(total)
        return total + 2 * torch.ones_like(total)

    monkeypatch.setattr(statistics.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(statistics.idist, "all_reduce", add_another_process)
    before = {name: value.clone() for name, value in network.named_parameters()}
    seen = train(network)
    assert [len(total) for total in sums] == [10, 10]  # means and variances of 3 + 2 channels, once an epoch
    for mean, total in zip(seen, sums):
        torch.testing.assert_close(mean, total[6:8] / 2 + 1)
    assert network[0].num_batches_tracked == 6
    assert all(torch.equal(value, before[name]) for name, value in network.named_parameters())


def test_one_process_keeps_its_statistics(network, monkeypatch):
    monkeypatch.setattr(statistics.idist, "all_reduce", None)
    train(network)


def test_a_network_without_statistics_has_none_to_average(monkeypatch):
    monkeypatch.setattr(statistics.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(statistics.idist, "all_reduce", None)
    engine = Engine(lambda engine, batch: None)
    AverageStatistics(torch.nn.InstanceNorm2d(2)).attach(engine)
    engine.run([0])
