# SPDX-License-Identifier: Apache-2.0
import sys
from datetime import timedelta

import pytest
import torch
from monai.handlers import StatsHandler, TensorBoardHandler

from monai_attn.errors import ConfigError
from monai_attn.handlers import SafeCheckpointLoader
from monai_attn.run import session as processes


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(processes.idist, "get_world_size", lambda: 2)
    return lambda rank: monkeypatch.setattr(processes.idist, "get_rank", lambda: rank)


def test_processes_other_than_the_first_do_not_report(tmp_path, two):
    loader = SafeCheckpointLoader("x.pt", {"model": torch.nn.Linear(1, 1)})
    handlers = [StatsHandler(), loader, TensorBoardHandler(log_dir=str(tmp_path))]
    two(0)
    assert processes.handlers_of_rank(handlers) == handlers
    two(1)
    assert processes.handlers_of_rank(handlers) == [loader]


@pytest.mark.parametrize("number", [0, 5])
def test_every_item_is_in_one_share_in_the_order_of_the_items(number, two):
    shares = []
    for rank in (0, 1):
        two(rank)
        shares += processes.share([None] * number)
    assert shares == list(range(number))
    with pytest.raises(ConfigError, match="start fewer processes"):
        processes.share(["a"], least=1)
    assert len(processes.share(["a", "b"], least=1)) == 1


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (2, "nccl")])
def test_processes_join_patiently_and_keep_the_hook_for_errors(monkeypatch, gpus, backend):
    joined = []

    def initialize(name, timeout):
        joined.append((name, timeout))
        sys.excepthook = print  # as torch does

    hook = sys.excepthook
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(processes.idist, "initialize", initialize)
    processes.join()
    assert joined[0][0] == backend
    assert joined[0][1] > timedelta(hours=1)  # longer than torch itself waits
    assert sys.excepthook is hook
    monkeypatch.setattr(processes.idist, "backend", lambda: backend)
    processes.join()  # again, as the command line does, which starts a run before its configuration does
    assert len(joined) == 1
    monkeypatch.setattr(processes.idist, "backend", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="there are 1"):
        processes.join()


def test_what_processes_gather_is_in_their_order(monkeypatch):
    assert processes.gather((1, 2)) == [1, 2]
    monkeypatch.setattr(processes.idist, "all_gather", lambda items: [items, [3]])
    assert processes.gather((1, 2)) == [1, 2, 3]
