# SPDX-License-Identifier: Apache-2.0
"""Run bundles: workflow, overrides, logs and manifests."""

from __future__ import annotations

from monai_attn.run.checks import check_overrides, check_settings
from monai_attn.run.manifest import RunManifest
from monai_attn.run.results import FinishedCases, Provenance
from monai_attn.run.session import (
    EXIT_BAD_INPUT,
    EXIT_FAILURE,
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    finish,
    handlers_of_rank,
    per_process,
    share,
    start,
    summarize,
)
from monai_attn.run.workflow import Workflow

__all__ = [
    "EXIT_BAD_INPUT",
    "EXIT_FAILURE",
    "EXIT_INCOMPLETE",
    "EXIT_INTERRUPTED",
    "FinishedCases",
    "Provenance",
    "RunManifest",
    "Workflow",
    "check_overrides",
    "check_settings",
    "finish",
    "handlers_of_rank",
    "per_process",
    "share",
    "start",
    "summarize",
]
