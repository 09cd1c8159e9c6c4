# SPDX-License-Identifier: Apache-2.0
"""Run bundles: workflow, overrides, logs and manifests."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# imported when first used, so that the command line can answer before torch is imported
_MODULES = {
    "checks": ("check_overrides", "check_settings", "describe_model"),
    "manifest": ("RunManifest",),
    "results": ("FinishedCases", "Provenance"),
    "session": (
        "EXIT_BAD_INPUT", "EXIT_FAILURE", "EXIT_INCOMPLETE", "EXIT_INTERRUPTED", "finish", "handlers_of_rank",
        "per_process", "share", "start", "summarize",
    ),
    "workflow": ("Workflow", "use_pretrained"),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import a name when it is first used."""
    if name in _MODULE_OF:
        return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List also the names that have not been used yet."""
    return sorted({*globals(), *__all__})
