# SPDX-License-Identifier: Apache-2.0
"""With what ``monai.bundle.run`` was called, and whether that can be meant."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow, ReferenceResolver
from monai.bundle import run as bundle_run
from monai.utils import ensure_tuple

from monai_attn.errors import ConfigError

__all__ = ["BundleCall", "bundle_call"]

# where data, results and weights lie, how the work is done, and what comes besides: the same results come out
_PLACES = {
    "bundle_root", "checkpoint", "dataset_dir", "device", "input", "num_workers", "on_error", "output_dir", "overwrite",
    "save_attention",
}  # fmt: skip


class BundleCall:
    """The arguments of the running ``monai.bundle.run``; empty if the bundle is driven in another way.

    Args:
        config_files: the configuration files.
        overrides: the overrides.
        parser: the configuration that they give.
    """

    def __init__(
        self, config_files: Sequence[str], overrides: dict[str, Any], parser: ConfigParser | None = None
    ) -> None:
        self.config_files = [Path(path) for path in config_files]
        self.overrides = overrides
        self.parser = parser or ConfigParser()

    @property
    def name(self) -> str:
        """Name of the last configuration file, such as ``train``, also for ``multi_gpu_train``."""
        return self.config_files[-1].stem.removeprefix("multi_gpu_") if self.config_files else "run"

    def configuration_hash(self) -> str:
        """A hash of all entries that results depend on, overrides included; always the same without a call."""
        parser = ConfigParser()
        if self.config_files:
            parser.read_config([str(path) for path in self.config_files])
            parser.update(self.overrides)
        entries = {key: value for key, value in parser.get().items() if key not in _PLACES}
        return hashlib.sha256(json.dumps(entries, sort_keys=True, default=str).encode()).hexdigest()

    def check_overrides(self) -> None:
        """Refuse overrides whose top-level key stands in none of the configuration files, and paths with ``#``."""
        known = set(ConfigParser.load_config_files([str(path) for path in self.config_files]))
        top_level = {ReferenceResolver.normalize_id(key).lstrip("+").split("::")[0] for key in known}
        for override, value in self.overrides.items():
            if isinstance(value, str) and "#" in value and value[0] not in "$@%":
                raise ConfigError(
                    f"--{override} {value}",
                    "in a configuration '#' separates names: MONAI would read it as '::'",
                    "rename the folder or the file, or give the folder above it",
                )
            key = ReferenceResolver.normalize_id(override).lstrip("+").split("::")[0]
            if key not in top_level:
                nearest = difflib.get_close_matches(key, top_level, n=1, cutoff=0.4)
                hint = f"did you mean --{nearest[0]}? " if nearest else ""
                raise ConfigError(
                    f"--{override}",
                    f"no entry named '{key}' in {', '.join(path.name for path in self.config_files)}",
                    f"{hint}The bundle's docs/README.md lists the entries",
                )


def bundle_call() -> BundleCall:
    """The call of ``monai.bundle.run`` that is under way, found on the stack: MONAI hands it to nobody."""
    frame: FrameType | None = inspect.currentframe()
    parser: ConfigParser | None = None
    while frame is not None and frame.f_code is not bundle_run.__code__:
        if isinstance(workflow := frame.f_locals.get("self"), ConfigWorkflow):
            parser = workflow.parser
        frame = frame.f_back
    if frame is None:
        return BundleCall([], {})
    arguments = frame.f_locals
    given: dict[str, Any] = {}
    if arguments["args_file"] is not None:
        own = set(inspect.signature(bundle_run).parameters) - {"config_file"}
        given = {k: v for k, v in ConfigParser.load_config_file(arguments["args_file"]).items() if k not in own}
    config_file = given.pop("config_file", None)
    return BundleCall(ensure_tuple(arguments["config_file"] or config_file), {**given, **arguments["override"]}, parser)
