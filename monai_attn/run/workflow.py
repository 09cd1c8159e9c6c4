# SPDX-License-Identifier: Apache-2.0
"""MONAI's workflow of a bundle, with checked overrides and short errors."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.utils import ensure_tuple

from monai_attn.run.checks import check_overrides
from monai_attn.run.start import start

__all__ = ["Workflow"]


class Workflow(ConfigWorkflow):
    """Run a bundle by its configuration files and overrides.

    MONAI's ``ConfigWorkflow``, but misspelt overrides are refused before anything is read, and an uncaught error is
    short and chooses the exit code (:func:`monai_attn.run.start`).

    Args:
        config_file: the configuration files, each of which goes over those before it.
        settings: other arguments of ``ConfigWorkflow``, and overrides of entries.

    Raises:
        ConfigError: if an override names no entry.

    Example:
        ``python -m monai.bundle run_workflow --workflow_name monai_attn.run.Workflow --config_file configs/train.json
        --epochs 50``
    """

    def __init__(self, config_file: str | Sequence[str], **settings: Any) -> None:
        files = [str(path) for path in ensure_tuple(config_file)]
        name = Path(files[-1]).stem
        start(name)
        own = inspect.signature(ConfigWorkflow.__init__).parameters
        check_overrides(files, {key: value for key, value in settings.items() if key not in own})
        kind = "infer" if Path(files[0]).stem.startswith("inference") else "train"
        super().__init__(files, **{"workflow_type": kind, **settings})
