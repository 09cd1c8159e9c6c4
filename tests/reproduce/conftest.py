# SPDX-License-Identifier: Apache-2.0
"""Cells that are done at once, with scores that a test gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from monai_attn.reproduce import Cell, Grid, Settings, Table, find_table

Scores = Callable[[Cell], dict[str, list[float]]]


def _finish(cell: Cell, scores: dict[str, list[float]], minutes: float = 1.0) -> None:
    """Leave what a training and an evaluation leave; scores are structure to a value for each case."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    for run, (_, overrides) in cell.runs.items():
        manifest = {"state": "finished", "overrides": overrides, "seconds": 1.0, "cpu_seconds": 30 * minutes}
        (cell.folder / f"{run}_run.json").write_text(json.dumps(manifest))
    cases = range(len(next(iter(scores.values()))))
    lines = [["filename", *scores], *([f"case_{case}", *(scores[name][case] for name in scores)] for case in cases)]
    text = "".join(",".join(map(str, line)) + "\n" for line in lines)
    (cell.folder / "val_mean_dice_raw.csv").write_text(text)


@pytest.fixture
def finish() -> Callable[..., None]:
    """Leaves what a cell leaves."""
    return _finish


@pytest.fixture
def make_grid(tmp_path: Path) -> Callable[..., Grid]:
    """A grid in the test's folder."""

    def make(paper: str = "scse", number: str = "VII", table: Table | None = None, **settings: object) -> Grid:
        given = {"dataset_dir": "data", "output_dir": tmp_path / "out", **settings}
        return Grid(table or find_table(paper, number), Settings(**given))

    return make


@pytest.fixture
def finish_at_once(monkeypatch: pytest.MonkeyPatch) -> Callable[[Scores], list[str]]:
    """Makes cells finish with given scores when they are run, and lists which of them were."""

    def use(scores: Scores) -> list[str]:
        ran: list[str] = []

        def run(cell: Cell) -> None:
            ran.append(cell.name)
            _finish(cell, scores(cell))

        monkeypatch.setattr(Cell, "run", run)
        return ran

    return use
