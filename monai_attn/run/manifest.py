# SPDX-License-Identifier: Apache-2.0
"""Save a manifest of a run: versions, data, results."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.config import get_config_values, get_optional_config_values
from monai.transforms import Compose
from monai.utils import ensure_tuple

import monai_attn
from monai_attn.data.layouts import LISTINGS, VOXEL_SUFFIXES, case_name
from monai_attn.errors import CasesError, DataError, InputError, root_cause
from monai_attn.files import atomic_write, writing_to
from monai_attn.handlers.checkpoint import BEST
from monai_attn.handlers.metrics import by_structure
from monai_attn.run.bundles import named_bundles
from monai_attn.run.report import CaseReport
from monai_attn.run.session import gather, open_log
from monai_attn.transforms import CheckLabeld

__all__ = ["RunManifest", "file_hash", "fingerprint", "image_hash"]

_END = 1 << 16
_FILES = ("*_seg.*", "*_overlay.png", "*_raw.csv", "curves.png", "report.html")
_LOGGER = logging.getLogger(__name__)
_PROGRESS = logging.getLogger("monai_attn.progress")


class RunManifest:
    """Log a run and save it as ``<name>_run.json``.

    The manifest holds command, versions, data, device, state and results. It is written when the engine starts and when
    it ends for any reason, for an inference with the failed cases. The log has the bundle, cases, network and classes
    at the start, each finished case, and the written files at the end. Inference and evaluation of several cases also
    write a page, ``report.html``, which is updated during the run (``monai_attn.run.report``). It must be the first
    handler, to see errors before MONAI's ``StatsHandler`` raises them again.

    Args:
        name, output_dir, seed: name of the run, folder for the manifest, and seed of the run.
        data: the data set or the input, to be fingerprinted.
        evaluator: the engine with the results, if it is not the one attached to.
        bundle: folder of the bundle.
        class_names: names of the classes 1, 2, … of a label map.
        structures: names of what an evaluation scores.

    Raises:
        DataError: at the start, if the folder is not writable.
        CasesError: at the end, if cases have no result (:class:`monai_attn.handlers.SkipFailedCases`).

    Example:
        ``SupervisedTrainer(..., train_handlers=[RunManifest("train", "out", seed=0, evaluator=evaluator)])``
    """

    def __init__(
        self,
        name: str,
        output_dir: str,
        *,
        seed: int,
        data: str | Sequence[str] | None = None,
        evaluator: Engine | None = None,
        bundle: str = "",
        class_names: Sequence[str] = (),
        structures: Sequence[str] = (),
    ) -> None:
        self.path = Path(output_dir) / f"{name}_run.json"
        self.seed = seed
        self.data = data
        self.evaluator = evaluator
        self.bundle = Path(bundle).absolute()
        self.content: dict[str, Any] = {}
        self.report = CaseReport(Path(output_dir), f"{name}: {self.bundle.name}", class_names, structures)

    def attach(self, engine: Engine) -> None:
        """Attach to a trainer or an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._finish)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)
        engine.add_event_handler(Events.EPOCH_STARTED, self._begin)
        if self.evaluator is None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.report)
        else:
            engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), _warn_of_absent, self.report.class_names)

    def _start(self, engine: Engine) -> None:
        self.weights = getattr(engine.state, "weights", [])  # of the handler that loads them, if any
        open_log()  # first, as it refuses a second training in the folder, which must not write a manifest
        self.begun, self.worked = time.perf_counter(), time.process_time()
        packages = {**get_config_values(), **get_optional_config_values()}
        self.content = {
            "state": "starting",
            "command": sys.argv,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "seed": self.seed,
            "data": fingerprint(self.data),
            "weights": {str(path): file_hash(path) for path in self.weights},
            "processes": idist.get_world_size(),
            "device": str(getattr(engine.state, "device", "")),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "versions": {"python": platform.python_version(), "monai_attn": monai_attn.__version__, **packages},
            "revision": _git_revision(),
        }
        self.report.begin(engine)
        _PROGRESS.info("\n".join(_introduction(self, engine)))

    def _begin(self) -> None:
        if self.content["state"] == "starting":  # what is refused until here leaves the manifest of an earlier run
            self.content["state"] = "running"
            self._write()

    def _finish(self, engine: Engine) -> None:
        self.report.end()
        measured: Any = (self.evaluator or engine).state
        self.content |= {
            "state": "finished",
            "seconds": round(time.perf_counter() - self.begun, 1),
            "cpu_seconds": round(time.process_time() - self.worked, 1),
            "results": {name: value for name, value in measured.metrics.items() if isinstance(value, (int, float))},
        }
        if self.evaluator is not None and measured.best_metric_epoch > 0:
            self.content["best"] = float(measured.best_metric)
        failed = _account(self.content, engine)
        self._write()
        if self.evaluator is None:
            self.report.write(last=True)
        _PROGRESS.info("\n".join(_conclusion(self, measured)))
        if failed is not None and idist.get_rank() == 0:  # one list is enough
            raise failed

    def _fail(self, _engine: Engine, error: BaseException) -> None:
        self.report.end()
        started = not isinstance(root_cause(error), InputError) or not self.path.exists()
        if self.content.get("state") == "running" or (self.content.get("state") == "starting" and started):
            self.content["state"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with contextlib.suppress(InputError):  # on a full disk, say, which is what the error is about
                self._write()
        raise error

    def _write(self) -> None:
        if idist.get_rank() > 0:
            return
        with writing_to(self.path.parent, "give another output_dir"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as draft:
            draft.write_text(json.dumps(self.content, indent=2) + "\n", encoding="utf-8")


def _account(content: dict[str, Any], engine: Engine) -> CasesError | None:
    """Record an inference's cases; return the error, if any."""
    state: Any = engine.state
    before = getattr(getattr(state.dataloader, "dataset", None), "finished", None)
    if before is None and not hasattr(state, "failures"):
        return None
    failures = gather(getattr(state, "failures", []))
    segmented = sum(gather([getattr(state, "segmented", state.iteration - len(failures))]))
    failed = [failure._asdict() for failure in failures]
    content["cases"] = {"finished before": before, "segmented": segmented, "failed": failed}
    if not failures:
        return None
    content["state"] = "incomplete"
    return CasesError(failures, (before or 0) + segmented)


def _warn_of_absent(engine: Any, names: Sequence[str]) -> None:
    """Warn of structures that no training label has."""
    transform = getattr(getattr(engine.state.dataloader, "dataset", None), "transform", None)
    for step in transform.flatten().transforms if isinstance(transform, Compose) else ():
        if isinstance(step, CheckLabeld) and (absent := step.absent(names)):
            listed = shorten(", ".join(absent), 100, placeholder=" …")
            _LOGGER.warning("%d of %d structures in no training label: %s", len(absent), len(names), listed)


def _introduction(run: RunManifest, engine: Engine) -> Iterator[str]:
    """Say what the run works on, with what."""
    yield run.report.title
    loaders = {"training": engine, "validation": run.evaluator} if run.evaluator else {"": engine}
    sizes = [f"{_count(getattr(part, 'data_loader', None))} {section}" for section, part in loaders.items()]
    yield f"  cases:   {', '.join(sizes).strip()} in {', '.join(map(str, ensure_tuple(run.data)))}"
    yield f"  device:  {run.content['device']}" + f", {idist.get_world_size()} processes" * (idist.get_world_size() > 1)
    network = getattr(engine, "network", None)
    if network is not None:
        size = sum(parameter.numel() for parameter in network.parameters())
        weights = f", weights {', '.join(run.weights)}" if run.weights else ""
        yield f"  network: {type(getattr(network, 'module', network)).__name__}, {size:,} parameters{weights}"
    yield f"  classes: {shorten(', '.join(run.report.class_names), 100, placeholder=' …')}"


def _conclusion(run: RunManifest, measured: Any) -> Iterator[str]:
    """Say what has been measured and written."""
    for name, scores in getattr(measured, "metric_details", {}).items() if run.evaluator is None else ():
        means = by_structure(scores, run.report.structures)
        text = ", ".join(f"{structure} {mean:.3f}" for structure, mean in means.items())
        yield f"{name}: {measured.metrics[name]:.4f} ({text})"
    folder = run.path.parent
    saver = getattr(measured, "to_save", {}).get("best_model")
    files = [pattern for pattern in (*_FILES, run.path.name) if next(folder.rglob(pattern), None)]
    yield f"in {folder}: {', '.join(files)}"
    if saver is not None:
        weights = saver.save.save_dir / BEST
        yield f"weights in {weights}: {measured.key_metric_name} {measured.best_metric:.4f}"
        bundle = str(run.bundle) if named_bundles().get(run.bundle.name) != run.bundle else run.bundle.name
        command = ["monai-attn", "segment", bundle, "IMAGE", "-o", "OUT", "--checkpoint", str(weights)]
        yield f"next: {shlex.join(command)}"


def _count(loader: Any) -> int:
    """Return the number of cases that a loader has, in all processes."""
    dataset: Any = getattr(loader, "dataset", ())
    if not hasattr(dataset, "finished"):
        return len(dataset)
    return sum(gather([sum(item["image"] != "" for item in dataset.data)]))  # each process has its own


def _git_revision() -> str | None:
    """Return the commit of this checkout, with ``-dirty`` if changed."""
    package = Path(monai_attn.__file__)
    if not _git(package.parent, "ls-files", package.name):  # installed, perhaps within somebody else's repository
        return None
    return _git(package.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        found = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() or None


def fingerprint(source: str | Sequence[str] | None) -> dict[str, str] | None:
    """Return a hash of the data list or the files."""
    path = Path(ensure_tuple(source)[0] if source else "")
    if not source or not path.exists():
        return None
    listing = next((path / name for name in LISTINGS if (path / name).is_file()), None)
    if listing is not None:
        content = listing.read_bytes()
    else:
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        lines = [f"{file.relative_to(path.parent)} {file.stat().st_size}" for file in files]
        content = "\n".join(lines).encode(errors="replace")
    return {"source": str(path), "sha256": hashlib.sha256(content).hexdigest()}


def file_hash(path: str) -> str:
    """Return the SHA-256 of a file.

    Raises:
        DataError: if there is no such file.
    """
    if not Path(path).is_file():
        raise DataError(path, "there is no such file", "correct the path, train first, or get the published weights")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        _feed(digest, file)
    return digest.hexdigest()


def image_hash(files: Sequence[str]) -> str:
    """Return a hash of an image's files, wherever they lie.

    Of gzip files, which end in a checksum, only both ends are read.
    """
    digest = hashlib.sha256()
    for path in map(Path, files):
        beside = (path.with_name(case_name(path) + ending) for ending in VOXEL_SUFFIXES)  # of a header
        slices = path.iterdir() if path.is_dir() else [path, *beside]
        for part in sorted(file for file in slices if file.is_file() and not file.name.startswith(".")):
            size = part.stat().st_size
            with open(part, "rb") as file:
                digest.update(f"{size} ".encode() + file.read(_END))
                file.seek(max(size - _END, 0) if part.suffix == ".gz" else 0)
                _feed(digest, file)
    return digest.hexdigest()


def _feed(digest: Any, file: BinaryIO) -> None:
    """Hash the rest of a file of any size, in little memory."""
    while block := file.read(1 << 20):
        digest.update(block)
