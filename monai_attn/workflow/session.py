# SPDX-License-Identifier: Apache-2.0
"""One run of a bundle, from its start to its manifest."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from monai.apps import get_logger
from monai.utils import ensure_tuple, set_determinism

from monai_attn.errors import CasesError, DataError, InputError
from monai_attn.files import atomic_write
from monai_attn.weights.checkpoint import read_state_dict
from monai_attn.weights.files import load_exported
from monai_attn.workflow.call import BundleCall, bundle_call
from monai_attn.workflow.config import check_config
from monai_attn.workflow.manifest import file_hash, fingerprint, git_revision, versions
from monai_attn.workflow.processes import gather, join
from monai_attn.workflow.results import FinishedCases
from monai_attn.workflow.screen import EXIT_INTERRUPTED, silence_notices, summarize, without_traces

__all__ = ["Session"]


class Session:
    """One run of a bundle, from its start to its manifest.

    ``start`` checks the overrides and the files that the run needs, fixes the seed, joins the other processes of a
    distributed run, silences notices that nobody can act on and opens ``<output_dir>/<name>.log``. ``run`` runs an
    engine. Both keep ``<output_dir>/<name>_run.json`` up to date: command, overrides, versions, revision, seed, data,
    device, time, state and results. ``<name>`` is that of the last configuration file, such as ``train``.

    An uncaught error ends the process with at most four lines on the screen, the full trace in the log, and exit code
    2 if the user can fix it (:class:`monai_attn.errors.InputError`), else 1. With ``MONAI_ATTN_DEBUG=1`` the trace
    comes on the screen. Cases that an engine passed over (:class:`monai_attn.engines.SkipFailedCases`) are listed at
    the end, in the manifest too, and the exit code is 3 if others have their results.

    Args:
        output_dir: folder for the log and the manifest.
        seed: seed of every source of randomness.
        data: the data set or the input, to be fingerprinted in the manifest.
        needs: files of weights, or of an exported network (``.ts``), without which the run cannot succeed.

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
        self._call = BundleCall([], {})
        self._trains = False

    def start(self) -> None:
        """Prepare the process.

        A program that drives the bundle in another way than ``monai.bundle.run`` (``monai.bundle.load``, say) keeps its
        own handling of errors, and nothing is written before ``run``.

        Raises:
            ConfigError: if an override names a key that no configuration file has, or the configuration cannot work
                (``workflow/config.py``).
            DataError: if a file of weights is missing or cannot be used, or the output folder cannot be written.
        """
        self._call = bundle_call()
        if self._call.config_files:
            sys.excepthook = self._report
            self._call.check_overrides()
        silence_notices()
        join()
        set_determinism(self.seed)
        if self._call.config_files:
            check_config(self._call.parser)
            self._document()

    def run(self, engine: Engine, evaluator: Engine | None = None, results: FinishedCases | None = None) -> None:
        """Run an engine and record how it ended.

        Args:
            engine: trainer or evaluator.
            evaluator: the engine whose metrics are the results, if it is not ``engine``.
            results: of an inference, which cases were finished before.

        Raises:
            DataError: as ``start`` does, if that has not looked yet.
            CasesError: if cases were passed over.
        """
        if not self.manifest:
            self._document()
        self._trains = "resume" in self._call.parser and evaluator is not None
        begun, worked = time.perf_counter(), time.process_time()
        engine.run()
        measured: Any = (evaluator or engine).state
        self.manifest |= {
            "state": "finished",
            "seconds": round(time.perf_counter() - begun, 1),
            "cpu_seconds": round(time.process_time() - worked, 1),
            "results": {name: value for name, value in measured.metrics.items() if isinstance(value, (int, float))},
        }
        if evaluator is not None and measured.best_metric_epoch > 0:
            self.manifest["best"] = float(measured.best_metric)
        failed, rank = self._account(engine, results), idist.get_rank()
        self._write_manifest()
        idist.finalize()
        if failed is not None and rank == 0:  # one list is enough
            raise failed

    def _account(self, engine: Engine, results: FinishedCases | None) -> CasesError | None:
        """Record what became of the cases of an inference; the error to end with if some of them failed."""
        if results is None and not hasattr(engine.state, "failures"):
            return None
        before = results.finished if results else 0
        failures = gather(getattr(engine.state, "failures", []))
        segmented = sum(gather([engine.state.iteration])) - len(failures)
        self.manifest["cases"] = {
            "finished before": before,
            "segmented": segmented,
            "failed": [failure._asdict() for failure in failures],
        }
        if not failures:
            return None
        self.manifest["state"] = "incomplete"
        return CasesError(failures, before + segmented)

    @property
    def name(self) -> str:
        """Name of the run, that of its last configuration file."""
        return self._call.name

    @property
    def _log(self) -> Path:
        return self.output_dir / f"{self.name}.log"

    def _document(self) -> None:
        for path in self.needs:
            load_exported(path) if path.endswith(".ts") else read_state_dict(path)
        self.manifest = {
            "state": "running",
            "command": sys.argv,
            "config_files": [str(path) for path in self._call.config_files],
            "overrides": {key: str(value) for key, value in self._call.overrides.items()},
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": self.seed,
            "data": fingerprint(self.data),
            "needs": {str(path): file_hash(path) for path in self.needs},
            "configuration": self._call.configuration_hash(),
            "processes": idist.get_world_size(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "versions": versions(),
            "revision": git_revision(),
        }
        self._open_log()
        self._write_manifest()

    def _open_log(self) -> None:
        """Log to a file, all processes to the same: the first one everything, the others what is wrong."""
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if idist.get_rank() == 0 and not self._call.parser.get("resume"):  # a training that goes on adds to its log
                self._log.write_text("", encoding="utf-8")
            idist.barrier()
            handler = logging.FileHandler(self._log, encoding="utf-8")
        except OSError as error:
            raise DataError(
                str(self.output_dir), f"it cannot be written: {error.strerror}", "give another output_dir"
            ) from error
        for console in logging.getLogger().handlers:
            console.addFilter(without_traces)
        handler.setLevel(logging.NOTSET if idist.get_rank() == 0 else logging.WARNING)
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
        with atomic_write(self.output_dir / f"{self.name}_run.json") as draft:
            draft.write_text(json.dumps(self.manifest, indent=2) + "\n", encoding="utf-8")

    def _report(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        """Stand in for ``sys.excepthook``."""
        if os.environ.get("MONAI_ATTN_DEBUG") == "1":
            sys.__excepthook__(kind, error, trace)
        message, code = summarize(error)
        if code == EXIT_INTERRUPTED and self._trains:
            message += "; --resume auto goes on after the last whole epoch"
        print(f"monai_attn: {message}", file=sys.stderr)
        if self.manifest:
            if self.manifest["state"] == "running":
                self.manifest["state"] = "interrupted" if code == EXIT_INTERRUPTED else "failed"
            with contextlib.suppress(InputError):  # on a full disk, say, which is what the message is about
                self._write_manifest()
        if self._log.is_file():
            with self._log.open("a", encoding="utf-8") as log:
                log.write("".join(traceback.format_exception(kind, error, trace)))
            print(f"  full trace: {self._log}", file=sys.stderr)
        else:
            print("  full trace: set MONAI_ATTN_DEBUG=1", file=sys.stderr)
        # leaving the hook by SystemExit is how the interpreter lets it choose the exit code
        raise SystemExit(code)
