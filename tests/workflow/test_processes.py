# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import torch
from ignite.handlers import ProgressBar
from monai.handlers import StatsHandler

from monai_attn.handlers import WeightsLoader
from monai_attn.workflow import processes


def test_processes_other_than_the_first_do_not_report(monkeypatch):
    handlers = [StatsHandler(), WeightsLoader("x.pt", torch.nn.Linear(1, 1)), ProgressBar()]
    assert processes.handlers_of_rank(handlers) == handlers
    monkeypatch.setattr(processes.idist, "get_rank", lambda: 1)
    assert processes.handlers_of_rank(handlers) == handlers[1:2]


def test_a_single_process_has_a_device_and_a_plain_network():
    network = torch.nn.Linear(1, 1)
    assert processes.distribute(network) is network
    assert processes.local_device().type in ("cpu", "cuda")


def test_what_processes_gather_is_in_their_order(monkeypatch):
    assert processes.gather((1, 2)) == [1, 2]

    def exchange(parts, items):
        parts[:] = [items, [3]]

    monkeypatch.setattr(processes.idist, "get_world_size", lambda: 2)
    monkeypatch.setattr(processes.dist, "all_gather_object", exchange)
    assert processes.gather((1, 2)) == [1, 2, 3]
