# SPDX-License-Identifier: Apache-2.0
"""What every bundle needs around its engine: a quiet, seeded, documented run that ends in a short error, or none.

A bundle's configuration has ``"session": {"_target_": "monai_attn.workflow.Session", ...}``, calls
``"initialize": "$@session.start()"`` and ``"run": "$@session.run(@train#trainer)"``.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import json
import logging
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.handlers import ProgressBar
from monai.apps import get_logger
from monai.bundle import ConfigParser, ReferenceResolver
from monai.bundle import run as bundle_run
from monai.handlers import StatsHandler, TensorBoardHandler
from monai.utils import ensure_tuple, set_determinism

import monai_attn
from monai_attn.errors import ConfigError, DataError, InputError

__all__ = ["EXIT_BAD_INPUT", "EXIT_FAILURE", "Session", "distribute", "handlers_of_rank", "local_device"]

EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
_EXIT_INTERRUPTED = 130
_PACKAGES = ("monai", "torch", "numpy", "nibabel", "itk", "pytorch-ignite")
# notices of other packages that a user of a bundle can do nothing about
_NOTICES = (
    r".*`torch\.cuda\.amp\.GradScaler\(args\.\.\.\)` is deprecated.*",
    r".*torch\.cuda\.amp\.GradScaler is enabled, but CUDA is not available.*",
    r".*User provided device_type of 'cuda', but CUDA is not available.*",
    r".*'pin_memory' argument is set as true but no accelerator is found.*",
    r".*Orientationd\.__init__:labels: Current default value.*",
    r".*Detected call of `lr_scheduler\.step\(\)` before `optimizer\.step\(\)`.*",
)


class Session:
    """One run of a bundle, from its start to its manifest.

    ``start`` checks the overrides and the files that the run needs, fixes the seed, joins the other processes of a
    distributed run, silences notices that nobody can act on and opens ``<output_dir>/<name>.log``. ``run`` runs an
    engine. Both keep ``<output_dir>/<name>_run.json`` up to date: command, overrides, versions, seed, data, device,
    time, state and results. ``<name>`` is that of the last configuration file, such as ``train``.

    An uncaught error ends the process with at most four lines on the screen, the full trace in the log, and exit code
    2 if the user can mend it (:class:`monai_attn.errors.InputError`), else 1. With ``MONAI_ATTN_DEBUG=1`` the trace
    comes on the screen.

    Args:
        output_dir: folder for the log and the manifest.
        seed: seed of every source of randomness.
        data: the data set or the input, to be fingerprinted in the manifest.
        needs: files without which the run cannot succeed, such as the weights.

    Example:
        ``Session("out", seed=0).start()``
    """

    def __init__(
        self, output_dir: str, seed: int = 0, data: str | Sequence[str] | None = None, needs: Sequence[str] | str = ()
    ) -> None:
        self.output_dir = Path(output_dir)
        self.seed = seed
        self.data = data
        self.needs = ensure_tuple(needs)
        self.manifest: dict[str, Any] = {}
        self._call = _BundleCall([], {})

    def start(self) -> None:
        """Prepare the process.

        A program that drives the bundle in another way than ``monai.bundle.run`` (``monai.bundle.load``, say) keeps its
        own handling of errors, and nothing is written before ``run``.

        Raises:
            ConfigError: if an override names a key that no configuration file has.
            DataError: if a needed file is missing or the output folder cannot be written.
        """
        self._call = _bundle_call()
        if self._call.config_files:
            sys.excepthook = self._report
            self._call.check_overrides()
        _silence_notices()
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            idist.initialize("nccl" if torch.cuda.is_available() else "gloo")
        set_determinism(self.seed)
        if self._call.config_files:
            self._document()

    def run(self, engine: Engine, evaluator: Engine | None = None) -> None:
        """Run an engine and record how it ended.

        Args:
            engine: trainer or evaluator.
            evaluator: the engine whose metrics are the results, if it is not ``engine``.

        Raises:
            DataError: as ``start`` does, if that has not looked yet.
        """
        if not self.manifest:
            self._document()
        begun = time.perf_counter()
        engine.run()
        results: Any = (evaluator or engine).state
        self.manifest |= {
            "state": "finished",
            "seconds": round(time.perf_counter() - begun, 1),
            "results": {name: value for name, value in results.metrics.items() if isinstance(value, (int, float))},
        }
        if evaluator is not None and results.best_metric_epoch > 0:
            self.manifest["best"] = float(results.best_metric)
        self._write_manifest()
        idist.finalize()

    @property
    def name(self) -> str:
        """Name of the run, that of its last configuration file."""
        return self._call.name

    @property
    def _log(self) -> Path:
        return self.output_dir / f"{self.name}.log"

    def _document(self) -> None:
        for path in self.needs:
            if not Path(path).is_file():
                raise DataError(path, "there is no such file", "train first, or put the published weights there")
        self.manifest = {
            "state": "running",
            "command": sys.argv,
            "config_files": [str(path) for path in self._call.config_files],
            "overrides": {key: str(value) for key, value in self._call.overrides.items()},
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": self.seed,
            "data": _fingerprint(self.data),
            "processes": idist.get_world_size(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "versions": _versions(),
        }
        if idist.get_rank() == 0:
            self._open_log()
        self._write_manifest()

    def _open_log(self) -> None:
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            handler = logging.FileHandler(self._log, mode="w")
        except OSError as error:
            raise DataError(
                str(self.output_dir), f"it cannot be written: {error.strerror}", "give another output_dir"
            ) from error
        for console in logging.getLogger().handlers:
            console.addFilter(_without_traces)
        handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
        # MONAI's logger of losses and metrics does not propagate to the root
        for logger in (logging.getLogger(), get_logger("monai.handlers.StatsHandler")):
            for old in [old for old in logger.handlers if isinstance(old, logging.FileHandler)]:
                logger.removeHandler(old)
                old.close()
            logger.addHandler(handler)

    def _write_manifest(self) -> None:
        if idist.get_rank() > 0 or not self.manifest:
            return
        path = self.output_dir / f"{self.name}_run.json"
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(self.manifest, indent=2) + "\n")
        draft.replace(path)

    def _report(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Stand in for ``sys.excepthook``."""
        if os.environ.get("MONAI_ATTN_DEBUG") == "1":
            sys.__excepthook__(kind, error, trace)
        cause = _cause(error)
        if isinstance(error, KeyboardInterrupt):
            message, code = "stopped by the user", _EXIT_INTERRUPTED
        elif isinstance(cause, InputError):
            message, code = str(cause), EXIT_BAD_INPUT
        else:
            lines = str(cause).strip().splitlines() or [""]
            message, code = f"{type(cause).__name__}: {lines[0]}", EXIT_FAILURE
        print(f"monai_attn: {message}", file=sys.stderr)
        if self.manifest:
            self.manifest["state"] = "interrupted" if code == _EXIT_INTERRUPTED else "failed"
            self._write_manifest()
        if self._log.is_file():
            with self._log.open("a") as log:
                log.write("".join(traceback.format_exception(kind, error, trace)))
            print(f"  full trace: {self._log}", file=sys.stderr)
        else:
            print("  full trace: set MONAI_ATTN_DEBUG=1", file=sys.stderr)
        # leaving the hook by SystemExit is how the interpreter lets it choose the exit code
        raise SystemExit(code)


def local_device() -> torch.device:
    """The device of this process in a distributed run: its own GPU, or the CPU."""
    return idist.device()


def distribute(network: torch.nn.Module) -> torch.nn.Module:
    """Move a network to this process's device and, in a distributed run, average its gradients over the processes."""
    return idist.auto_model(network)


def handlers_of_rank(handlers: Sequence[Any]) -> list[Any]:
    """The handlers that this process of a distributed run needs: all for the first, none that only report elsewhere."""
    reporters = (StatsHandler, TensorBoardHandler, ProgressBar)
    return [handler for handler in handlers if idist.get_rank() == 0 or not isinstance(handler, reporters)]


class _BundleCall:
    """The arguments of the running ``monai.bundle.run``; empty if the bundle is driven in another way."""

    def __init__(self, config_files: Sequence[str], overrides: dict[str, Any]) -> None:
        self.config_files = [Path(path) for path in config_files]
        self.overrides = overrides

    @property
    def name(self) -> str:
        return self.config_files[-1].stem if self.config_files else "run"

    def check_overrides(self) -> None:
        """Refuse overrides whose top-level key stands in none of the configuration files."""
        known = set(ConfigParser.load_config_files([str(path) for path in self.config_files]))
        top_level = {ReferenceResolver.normalize_id(key).lstrip("+").split("::")[0] for key in known}
        for override in self.overrides:
            key = ReferenceResolver.normalize_id(override).lstrip("+").split("::")[0]
            if key not in top_level:
                nearest = difflib.get_close_matches(key, top_level, n=1, cutoff=0.4)
                hint = f"did you mean --{nearest[0]}? " if nearest else ""
                raise ConfigError(
                    f"--{override}",
                    f"no entry named '{key}' in {', '.join(path.name for path in self.config_files)}",
                    f"{hint}The bundle's docs/README.md lists the entries",
                )


def _bundle_call() -> _BundleCall:
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and frame.f_code is not bundle_run.__code__:
        frame = frame.f_back
    if frame is None:
        return _BundleCall([], {})
    arguments = frame.f_locals
    given: dict[str, Any] = {}
    if arguments["args_file"] is not None:
        own = set(inspect.signature(bundle_run).parameters) - {"config_file"}
        given = {k: v for k, v in ConfigParser.load_config_file(arguments["args_file"]).items() if k not in own}
    config_file = given.pop("config_file", None)
    return _BundleCall(ensure_tuple(arguments["config_file"] or config_file), {**given, **arguments["override"]})


def _cause(error: BaseException) -> BaseException:
    """The error that the user should see: the first that can be mended, else the first that happened."""
    while not isinstance(error, InputError):
        earlier = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if earlier is None:
            break
        error = earlier
    return error


def _silence_notices() -> None:
    for notice in _NOTICES:
        warnings.filterwarnings("ignore", message=notice)
    logging.getLogger("ignite").setLevel(logging.WARNING)


def _without_traces(record: logging.LogRecord) -> bool:
    """Keep the traces that engines log on their way down off the screen; the log file has them."""
    return not record.exc_info and not (record.name.startswith("ignite") and record.levelno >= logging.ERROR)


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "monai_attn": monai_attn.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _fingerprint(source: str | Sequence[str] | None) -> dict[str, str] | None:
    """What the data were: a hash of the data list, or else of all names and sizes; of an image's first file if many."""
    path = Path(ensure_tuple(source)[0] if source else "")
    if not source or not path.exists():
        return None
    listing = path / "dataset.json"
    if listing.is_file():
        content = listing.read_bytes()
    else:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        content = "\n".join(f"{file.relative_to(path.parent)} {file.stat().st_size}" for file in files).encode()
    return {"source": str(path), "sha256": hashlib.sha256(content).hexdigest()}
