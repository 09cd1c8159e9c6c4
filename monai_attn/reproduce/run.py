# SPDX-License-Identifier: Apache-2.0
"""Run a table, cell by cell, and write it."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

from tqdm import tqdm

from monai_attn.errors import CasesError, ConfigError, Failure
from monai_attn.files import atomic_write
from monai_attn.reproduce.cells import Cell, CellError, Grid
from monai_attn.reproduce.report import Line, lines, structure_scores, to_csv, to_latex, to_markdown
from monai_attn.visualize import figures

__all__ = ["heading", "reproduce", "write"]


def reproduce(grid: Grid, *, budget: float = math.inf) -> list[Line]:
    """Run the cells of a table that are not finished, and write the table after each of them.

    A cell that fails does not stop the others. A run that was interrupted goes on where it was, within a cell too.

    Args:
        grid: the cells.
        budget: hours that all cells together may take, those that are finished included; one that is expected to end
            later, as it takes as long as the longest so far, is not begun.

    Returns:
        the lines of the table.

    Raises:
        ConfigError: if the cells need a data set and none is given.
        CasesError: at the end, if cells failed, with the reasons.

    Example:
        ``reproduce(Grid(find_table("scse", "III"), Settings("data/malc", Path("out"), seeds=(0, 1, 2))), budget=6)``
    """
    if grid.cells and grid.settings.dataset_dir is None and budget > 0:
        raise ConfigError("dataset_dir", "no data set to train on was given", "give --dataset_dir, or --parameters")
    failures: list[Failure] = []
    done: list[Cell] = [cell for cell in grid.cells if cell.is_finished()]
    with tqdm(grid.wanted, disable=None, unit="cell", desc=f"{grid.table.paper} {grid.table.number}") as cells:
        for cell in cells:
            if cell in done or not grid.next_fits(budget, done):
                continue
            tqdm.write(f"{cell.name} …", file=sys.stderr)
            try:
                cell.run()
            except CellError as error:
                failures.append(Failure(str(cell.folder), str(error), "fix that and give the same command again"))
                tqdm.write(f"  {error}", file=sys.stderr)
            else:
                done.append(cell)
                tqdm.write(f"  {_scores(cell, grid)}, {cell.minutes:.1f} min", file=sys.stderr)
            write(grid)
    table = write(grid)
    if failures:
        raise CasesError(failures, len(done), noun="cells")
    return table


def _scores(cell: Cell, grid: Grid) -> str:
    means = {}
    for measure, metric in grid.table.measures.items():
        values = [value for value in cell.scores(metric)["mean"].values() if not math.isnan(value)]
        means[measure] = sum(values) / len(values) if values else math.nan
    return ", ".join(f"{measure} {mean:.3f}" for measure, mean in means.items())


def heading(grid: Grid) -> list[str]:
    """What a reader must know of a table, a paragraph each."""
    table, settings = grid.table, grid.settings
    clock = "time on the clock on a GPU" if any(cell.on_gpu for cell in grid.cells) else "processor time"
    facts = [f"Table {table.number} of {table.paper}: {table.title}.", f"The paper's data: {table.data}."]
    if grid.cells:
        width = "narrow and short, as the table's `small` entries say" if settings.small else "as in the paper"
        section = f", section {settings.section}" if settings.section else ""
        facts += [
            f"Ours: {_data_name(settings.dataset_dir)}{section}; bundle {grid.bundle.name}; networks and trainings "
            f"{width}{'; ' + ', '.join(settings.overrides) if settings.overrides else ''}.",
            "ours: mean ± standard deviation over the n cases, each the mean over the seeds; seeds: their number and "
            "the standard deviation of their means; p: two-sided Wilcoxon signed-rank test over the cases against the "
            f"row without the method; minutes: training and evaluation, {clock}.",
        ]
    return [*facts, table.note] if table.note else facts


def _data_name(folder: str | None) -> str:
    if folder is None:
        return "no data"
    listing = Path(folder) / "dataset.json"
    described = json.loads(listing.read_text(encoding="utf-8")) if listing.is_file() else {}
    return described.get("description") or described.get("name") or Path(folder).name


def write(grid: Grid) -> list[Line]:
    """Write the table, as far as it is there, as ``table.md``, ``.csv`` and ``.tex``, and its box plot.

    The plot, ``boxplot.png``, has the cases' scores by structure and method, as Figs. 3 and 4 of scSE.
    """
    found, facts = lines(grid), heading(grid)
    folder = grid.settings.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.md": "\n\n".join([*facts, to_markdown(found)]),
        "table.csv": to_csv(found),
        "table.tex": to_latex(found, facts[0]),
    }
    for name, text in texts.items():
        with atomic_write(folder / name) as draft:
            draft.write_text(text, encoding="utf-8")
    measure, scores = next(iter(grid.table.measures), ""), structure_scores(grid)
    if scores:
        figures.save(figures.structure_boxplot(scores, metric=measure, title=facts[0]), folder / "boxplot.png")
    return found
