# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterable
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from torch import nn


def make_trainer(
    network: nn.Module, batches: Iterable[Any], loss: nn.Module, handlers: Iterable[Any] = (), **options: Any
) -> SupervisedTrainer:
    """A trainer for one epoch on the CPU, by gradient descent with a learning rate ``lr``."""
    return SupervisedTrainer(
        device=torch.device("cpu"),
        train_data_loader=batches,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=options.pop("lr", 0.1)),
        loss_function=loss,
        train_handlers=list(handlers),
        **{"max_epochs": 1, **options},
    )
