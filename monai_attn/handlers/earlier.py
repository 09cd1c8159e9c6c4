# SPDX-License-Identifier: Apache-2.0
"""What becomes of an earlier training in whose folder a new one writes."""

from __future__ import annotations

import logging
import shutil
from itertools import count
from pathlib import Path

from monai_attn.errors import DataError
from monai_attn.weights.files import read_tensors

__all__ = ["BEST", "FINAL", "LATEST", "move_aside", "stopped_training"]

BEST, FINAL, LATEST = "model.pt", "model_final.pt", "checkpoint_latest.pt"
_logger = logging.getLogger(__name__)


def stopped_training(save_dir: Path) -> bool:
    """Whether a folder holds a training that was stopped before its end; warns of what a new one does to it.

    Args:
        save_dir: the folder, which need not exist.
    """
    latest = save_dir / LATEST
    if latest.exists():
        try:
            earlier = read_tensors(latest)
            finished, progress = earlier["finished"], "{epoch} of {max_epochs}".format(**earlier["trainer"])
        except (DataError, KeyError, TypeError):
            finished, progress = False, "that cannot be read"
        if not finished:
            _logger.warning(
                f"{latest} is of a training that was stopped after epoch {progress}; --resume auto goes on with it. "
                f"This new training moves its files to {_free_folder(save_dir)} after its first step."
            )
            return True
    replaced = [name for name in (BEST, FINAL) if (save_dir / name).exists()]
    if replaced:
        _logger.warning(
            f"this training will replace {' and '.join(replaced)} in {save_dir}; to keep them, give another ckpt_dir."
        )
    return False


def move_aside(save_dir: Path) -> None:
    """Move the files of a training into a folder of their own, ``previous_1``, ``previous_2``, … within its folder.

    ``model.pt`` stays in its place as well until the new training has its own, for a server may be using it.
    """
    folder = _free_folder(save_dir)
    folder.mkdir()
    if (save_dir / BEST).exists():
        try:
            (folder / BEST).hardlink_to(save_dir / BEST)
        except OSError:  # a file system without links
            shutil.copy2(save_dir / BEST, folder / BEST)
    for name in (LATEST, FINAL):
        if (save_dir / name).exists():
            (save_dir / name).replace(folder / name)


def _free_folder(save_dir: Path) -> Path:
    return next(folder for n in count(1) if not (folder := save_dir / f"previous_{n}").exists())
