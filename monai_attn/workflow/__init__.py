# SPDX-License-Identifier: Apache-2.0
"""What every bundle needs around its engine: a quiet, seeded, documented run that ends in a short error, or none.

A bundle's configuration has ``"session": {"_target_": "monai_attn.workflow.Session", ...}``, calls
``"initialize": "$@session.start()"`` and ``"run": "$@session.run(@train#trainer)"``.
"""

from __future__ import annotations

from monai_attn.workflow.processes import distribute, handlers_of_rank, local_device, share
from monai_attn.workflow.results import FinishedCases, Provenance
from monai_attn.workflow.screen import EXIT_BAD_INPUT, EXIT_FAILURE, EXIT_INCOMPLETE, EXIT_INTERRUPTED
from monai_attn.workflow.session import Session

__all__ = [
    "EXIT_BAD_INPUT",
    "EXIT_FAILURE",
    "EXIT_INCOMPLETE",
    "EXIT_INTERRUPTED",
    "FinishedCases",
    "Provenance",
    "Session",
    "distribute",
    "handlers_of_rank",
    "local_device",
    "share",
]
