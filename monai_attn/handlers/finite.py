# SPDX-License-Identifier: Apache-2.0
"""A training that stops when its numbers no longer are any."""

from __future__ import annotations

from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.engines import IterationEvents
from monai.utils import CommonKeys, ImageMetaKey, ensure_tuple

from monai_attn.data.datalist import case_name
from monai_attn.errors import DataError

__all__ = ["StopOnNonFinite"]

_CURE = (
    "look for NaN and for wrong intensities in the data, or lower the learning rate; the weights in ckpt_dir are those "
    "of the epochs before"
)


class StopOnNonFinite:
    """Stop a training at the first loss that is NaN or infinite, before it reaches the weights.

    The weights themselves are looked at when an epoch ends, before they are validated or saved. A step that is left out
    because of infinite gradients in mixed precision is none of its business.

    Example:
        ``SupervisedTrainer(..., train_handlers=[StopOnNonFinite()])``
    """

    def attach(self, engine: Engine) -> None:
        """Attach to one of MONAI's trainers."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check_loss)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.check_weights)

    def check_loss(self, engine: Engine) -> None:
        """Look at the loss of the batch.

        Raises:
            DataError: if it is not finite, with the names of the cases.
        """
        state: Any = engine.state
        loss = state.output[CommonKeys.LOSS].detach()
        if not loss.isfinite():
            place = f"iteration {state.iteration} (epoch {state.epoch})"
            raise DataError(_cases(state.batch), f"their loss is {float(loss)} in {place}", _CURE)

    def check_weights(self, engine: Engine) -> None:
        """Look at the weights behind the last iteration of an epoch.

        Raises:
            DataError: if they are not all finite.
        """
        trainer: Any = engine
        state = trainer.state
        if state.iteration % state.epoch_length:
            return
        finite = [value.isfinite().all() for value in trainer.network.state_dict().values()]
        if not torch.stack(finite).all():
            raise DataError("the network", f"its weights are NaN or infinite behind epoch {state.epoch}", _CURE)


def _cases(batch: Any) -> str:
    """The cases of a batch as far as their names are known."""
    image = batch.get(CommonKeys.IMAGE) if isinstance(batch, dict) else None
    files = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(image, MetaTensor) else None
    names = dict.fromkeys(case_name(str(file)) for file in ensure_tuple(files or ()))
    return f"the cases {', '.join(names)}" if names else "the batch"
