# SPDX-License-Identifier: Apache-2.0
"""Report a run: screen output, table and HTML page."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from html import escape
from logging.handlers import MemoryHandler
from pathlib import Path
from statistics import median
from string import Template
from typing import Any
from urllib.parse import quote

import ignite.distributed as idist
from ignite.engine import Engine
from monai.apps import get_logger
from monai.transforms import LoadImage
from monai.utils import CommonKeys, ImageMetaKey, MetaKeys
from tqdm import tqdm

from monai_attn.data.datalist import case_name
from monai_attn.errors import DataError, Failure
from monai_attn.files import atomic_write, csv_cell, print_any_name
from monai_attn.handlers.metrics import by_structure
from monai_attn.handlers.pictures import names_of
from monai_attn.metrics import measure
from monai_attn.transforms.grid import files_of

__all__ = ["CaseReport", "read_cases", "tidy_screen", "write_page", "write_table"]

_PROGRESS = logging.getLogger("monai_attn.progress")
_PROGRESS.setLevel(logging.DEBUG)


class _Screen(logging.Handler):
    """Print lines above any progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record))


def tidy_screen() -> ExitStack:
    """Show only progress and warnings; return a restoring context.

    Metrics and traces are left to the log file.

    Example:
        ``with tidy_screen(): evaluator.run()``
    """
    print_any_name()
    undo, root, screen = ExitStack(), logging.getLogger(), _Screen(logging.INFO)
    screen.addFilter(_is_shown)
    for handler in [*root.handlers, *get_logger("monai.handlers.StatsHandler").handlers]:
        if getattr(handler, "stream", None) in (sys.stdout, sys.stderr):  # the screen takes its place
            handler.addFilter(_is_nothing)
            undo.callback(handler.removeFilter, _is_nothing)
    root.addHandler(screen)
    undo.callback(root.removeHandler, screen)
    return undo


def _is_nothing(_record: logging.LogRecord) -> bool:
    return False


def _is_shown(record: logging.LogRecord) -> bool:
    from_engine = record.name.startswith("ignite") and record.levelno >= logging.ERROR
    return idist.get_rank() == 0 and not record.exc_info and not from_engine


class CaseReport:
    """Log and save each case of an inference or evaluation.

    A segmented case is saved as ``<output_dir>/cases/<case>.json``, a scored one in ``scores``. The table and the page
    are made from these files, so they include all runs and processes of a folder, even killed ones.

    Args:
        output_dir, title: folder of the results, and title of the page.
        class_names, structures: see :class:`monai_attn.run.RunManifest`.

    Example:
        :class:`monai_attn.run.RunManifest` attaches it.
    """

    def __init__(
        self, output_dir: Path, title: str, class_names: Sequence[str] = (), structures: Sequence[str] = ()
    ) -> None:
        self.output_dir, self.title = output_dir, title
        self.class_names, self.structures = class_names, structures
        self.failures: list[Failure] = []
        self.written = self.cost = 0.0
        self.said = MemoryHandler(sys.maxsize)
        self.said.addFilter(lambda record: record.levelno == logging.WARNING and record.name != _PROGRESS.name)

    def begin(self, engine: Engine) -> None:
        """Start the clock, and delete the scores of an earlier evaluation."""
        self.names, self.last = names_of(engine), time.perf_counter()
        logging.getLogger("monai_attn").addHandler(self.said)
        if idist.get_rank() == 0 and self.structures:
            for path in self.output_dir.glob("scores/*.json"):
                path.unlink()

    def __call__(self, engine: Engine) -> None:
        """Log and save the cases of the batch that the evaluator has just finished."""
        state: Any = engine.state
        begun, self.last = self.last, time.perf_counter()
        cases = state.output if isinstance(state.output, list) else ()
        for index, case in enumerate(cases, start=-len(cases)):
            record = {**self._record(case, state, index), "seconds": round((self.last - begun) / len(cases), 2)}
            warnings = record["warnings"]
            record["warnings"] = [*warnings, *self._said_of(case[CommonKeys.PRED])]  # which the screen has shown
            _save(self.output_dir / ("cases" if "mask" in record else "scores"), record)
            values = [f"{name} {value:,} {record['unit']}".strip() for name, value in record["values"].items()]
            line = ", ".join([f"{record['case']}: {record['seconds']:.1f} s", *values])
            _PROGRESS.log(logging.WARNING if warnings else logging.INFO, "; warning: ".join([line, *warnings]))
        for failure in getattr(state, "failures", [])[len(self.failures) :]:
            self.failures.append(failure)
            _PROGRESS.warning(f"{failure.what}: no result, {failure.problem}")
        self.write()

    def _record(self, case: Mapping[str, Any], state: Any, index: int) -> dict[str, Any]:
        label_map = case[CommonKeys.PRED]
        measured = measure(label_map, self.class_names)
        if MetaKeys.SAVED_TO in label_map.meta:
            mask = Path(os.path.relpath(label_map.meta[MetaKeys.SAVED_TO], self.output_dir)).as_posix()
            return {"case": mask.rsplit("_seg.", 1)[0], "mask": mask, **measured}
        path = str(label_map.meta[ImageMetaKey.FILENAME_OR_OBJ])
        if hasattr(state, "case_scores"):
            scores = by_structure(state.case_scores[0][index][None], state.case_scores[1] or self.structures)
            measured["values"] = {name: round(score, 3) for name, score in scores.items()}
            measured["unit"] = "Dice" if "dice" in state.key_metric_name else ""
        return {"case": self.names.get(path, case_name(path)), **measured}

    def end(self) -> None:
        """Stop collecting warnings."""
        logging.getLogger("monai_attn").removeHandler(self.said)

    def _said_of(self, image: Any) -> list[str]:
        """Return the warnings of an image's files so far."""
        messages = dict.fromkeys(record.getMessage() for record in self.said.buffer)
        parts = [message.partition(file) for message in messages for file in filter(None, files_of(image, ""))]
        about = [text for start, _, text in parts if not start and text.startswith((":", " ("))]
        return [text.removeprefix(":").strip() for text in about]

    def write(self, last: bool = False) -> None:
        """Write the page, if there are several cases.

        Until the ``last`` time it is left out where it would take more than 2 % of the time.
        """
        begun = time.perf_counter()
        if idist.get_rank() > 0 or (not last and begun - self.written < 50 * self.cost):
            return
        records = list(map(_load, sorted(self.output_dir.glob("scores/*.json"))))
        records = records or read_cases(self.output_dir, self.class_names)
        done = {Path(record["case"]).name for record in records}
        runs = map(_load, self.output_dir.glob("*_run.json"))  # also those of other processes
        failed = [Failure(**fields) for run in runs for fields in run.get("cases", {}).get("failed", [])]
        failed = [fault for fault in failed if case_name(fault.what) not in done]  # else it was segmented since
        failed = list(dict.fromkeys([*self.failures, *failed]))
        if len(records) + len(failed) > 1:
            write_page(self.output_dir / "report.html", self.title, records, failed)
        self.written = time.perf_counter()
        self.cost = self.written - begun


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _save(folder: Path, record: Mapping[str, Any]) -> None:
    path = folder / f"{record['case']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as draft:
        draft.write_text(json.dumps(record), encoding="utf-8")


def read_cases(output_dir: Path, class_names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the record of every mask in a folder.

    A mask that is newer than its record is measured again: its run was killed, or it was edited.

    Example:
        ``[record["case"] for record in read_cases(Path("out"))]``
    """
    masks = {}
    for path in sorted(output_dir.rglob("[!.]*_seg.*")):
        if path.name.endswith((".nii.gz", ".nii", ".png")):
            masks[path.relative_to(output_dir).as_posix().rsplit("_seg.", 1)[0]] = path
    records = {}
    for case, mask in masks.items():
        saved = output_dir / "cases" / f"{case}.json"
        if saved.exists() and saved.stat().st_mtime_ns >= mask.stat().st_mtime_ns:
            records[case] = _load(saved)
    names = class_names or next((list(record["values"]) for record in records.values()), [])
    for case in masks.keys() - records.keys():
        label_map = LoadImage(image_only=True, ensure_channel_first=True)(masks[case])
        records[case] = {"case": case, "mask": masks[case].relative_to(output_dir).as_posix()}
        records[case] |= measure(label_map, names)
        _save(output_dir / "cases", records[case])
    return [records[case] for case in masks]


def write_table(output_dir: str | Path, path_csv: str | Path) -> None:
    """Write the volumes of a folder's segmented cases as CSV.

    Raises:
        DataError: if there are none, or the table cannot be written.

    Example:
        ``write_table("out", "volumes.csv")``
    """
    records = read_cases(Path(output_dir))
    if not records:
        raise DataError(str(output_dir), "there is no mask (*_seg.nii.gz, *_seg.png)", "segment images into it first")
    columns = dict.fromkeys((name, record["unit"]) for record in records for name in record["values"])
    rows = [["case", *(f"{name} ({unit})" for name, unit in columns), "seconds", "warnings"]]
    for record in records:
        values = [record["values"].get(name, "") for name, _ in columns]
        rows.append([record["case"], *map(str, values), str(record.get("seconds", "")), "; ".join(record["warnings"])])
    with atomic_write(path_csv, "give another file") as draft:
        draft.write_text("".join(",".join(map(csv_cell, row)) + "\n" for row in rows), "utf-8", "replace")


def write_page(path: Path, title: str, records: Sequence[Mapping[str, Any]], failures: Sequence[Failure] = ()) -> None:
    """Write an HTML page with a row per case.

    Cases with warnings come first, then those with a volume beyond three median absolute deviations, and those with the
    lowest scores. The page links to masks and pictures beside it.

    Raises:
        DataError: if it cannot be written.

    Example:
        ``write_page(Path("out/report.html"), "hippocampus", read_cases(Path("out")))``
    """
    columns = list(dict.fromkeys((name, record["unit"]) for record in records for name in record["values"]))
    usual = {name: _usual_range(name, records) for name, unit in columns if unit in ("ml", "pixels")}
    rows = sorted(_row(path.parent, record, [name for name, _ in columns], usual) for record in records)
    numbers = [f"{name}, {unit}" if unit else name for name, unit in columns]
    heads = {"case": "", "notes": "", **dict.fromkeys([*numbers, "seconds"], ' class="number"')}
    noted = sum(bool(record["warnings"]) for record in records)
    page = Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        summary=f"{len(records)} cases with results, {noted} with warnings; {len(failures)} cases without a result",
        failures="".join(f"<li>{escape(str(failure))}</li>" for failure in failures),
        heads="".join(f'<th scope="col"{kind}><button>{escape(head)}</button></th>' for head, kind in heads.items()),
        rows="\n".join(row for _, row in rows),
    )
    with atomic_write(path) as draft:
        draft.write_text(page, encoding="utf-8", errors="replace")


def _usual_range(name: str, records: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Return the range of a volume, any if it is mostly the same."""
    values = [record["values"][name] for record in records if name in record["values"]]
    middle = median(values)
    spread = 3 * median(abs(value - middle) for value in values) or math.inf
    return middle - spread, middle + spread


def _row(
    folder: Path, record: Mapping[str, Any], names: Sequence[str], usual: Mapping[str, tuple[float, float]]
) -> tuple[tuple[Any, ...], str]:
    """Return what a row is sorted by, and the row."""
    case, values = record["case"], {name: record["values"].get(name, math.nan) for name in names}
    odd = [name for name, (low, high) in usual.items() if values[name] < low or values[name] > high]
    notes = [*record["warnings"], *(f"unusual volume of {name}" for name in odd)]
    scores = [value for name, value in values.items() if name not in usual and not math.isnan(value)]
    order = not record["warnings"], not odd, sum(scores) / max(len(scores), 1), case
    files = {"overlay": f"{case}_overlay.png", "mask": record.get("mask", ""), "attention": f"{case}_attention.png"}
    links = {text: quote(os.fsencode(file)) for text, file in files.items() if file and (folder / file).exists()}
    image = f'<img src="{links.get("overlay")}" alt="overlay of {escape(case)}" loading="lazy">'
    links_shown = (f'<a href="{link}">{image if text == "overlay" else text}</a>' for text, link in links.items())
    cells = [f'<th scope="row"><span>{escape(case)}</span>{"".join(links_shown)}</th>']
    cells += [f'<td class="notes">{escape("; ".join(notes))}</td>']
    for name, value in {**values, "": record.get("seconds", math.nan)}.items():
        mark = "number odd" if name in odd else "number"
        cells.append(f'<td class="{mark}" data-value="{value}">{"-" if math.isnan(value) else f"{value:,}"}</td>')
    return order, f"<tr>{''.join(cells)}</tr>"
