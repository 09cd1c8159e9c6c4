# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from torch.utils.data import Dataset


class Recorder:
    """Write ``rank<n>.json``, the numbers of the cases of every epoch, and ``rank<n>.pt``, the weights at the end."""

    def __init__(self, folder: str, network: torch.nn.Module) -> None:
        self.folder = Path(folder)
        self.network = network
        self.seen: dict[int, list[int]] = {}

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.COMPLETED, self.write)
        training = engine.data_loader.dataset
        take = type(training).__getitem__

        def note(dataset: Dataset, index: int):
            if dataset is training:
                self.seen.setdefault(engine.state.epoch, []).append(int(index))
            return take(dataset, index)

        type(training).__getitem__ = note

    def write(self, _engine: Engine) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"rank{idist.get_rank()}"
        torch.save(self.network.state_dict(), self.folder / f"{name}.pt")
        (self.folder / f"{name}.json").write_text(json.dumps(self.seen))
