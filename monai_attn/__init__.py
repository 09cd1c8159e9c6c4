# SPDX-License-Identifier: Apache-2.0
"""Attention for medical image segmentation in MONAI.

It provides scSE, FocusNet, Autofocus and EG-CNN as blocks, networks, losses and bundles. ``segment`` applies a bundle
to an image, ``load`` returns its network.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_SUBPACKAGES = (
    "adapt", "blocks", "data", "handlers", "inferers", "losses", "metrics", "nets", "run", "transforms", "visualize",
    "weights",
)  # fmt: skip


_FUNCTIONS = ("load", "segment")


def __getattr__(name: str) -> Any:
    """Import a subpackage or a function when it is first used."""
    if name in _FUNCTIONS:
        return getattr(import_module(f"{__name__}.run.api"), name)
    if name in _SUBPACKAGES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBPACKAGES, *_FUNCTIONS])
