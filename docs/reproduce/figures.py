# SPDX-License-Identifier: Apache-2.0
"""Draw the comparisons whose results are in docs/reproduce/results: ``python docs/reproduce/figures.py``.

A figure of a comparison has the validation of every training, the score of every seed with their mean, and the
difference to the baseline with its 95 % interval beside the paper's. Tables are written again with them.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from reproduce import FOLDER, RUNS, Grid

from monai_attn.visualize.figures import panels

IMAGES = FOLDER.parent / "images"


def finished_tables() -> dict[str, Grid]:
    """Return the comparisons that have results, by name."""
    paper = json.loads((FOLDER / "evidence.json").read_text(encoding="utf-8"))
    found = {}
    for name in paper["tables"]:
        folders = (FOLDER / "results" / f"evidence_{name}").glob("*/seed_*")
        seeds = sorted({int(folder.name.removeprefix("seed_")) for folder in folders})
        if seeds:
            options = {"paper": "evidence", "table": name, "seeds": seeds, "output_dir": None, "dataset_dir": None}
            found[name] = Grid(paper, argparse.Namespace(**options, small=False, section="", set=[], rows=None))
    return found


def comparison(grid: Grid) -> Figure:
    """Draw curves, scores and differences of the rows that were run."""
    measure, metric = next(iter(grid.table["measures"].items()))
    lines = {line["method"]: line for line in grid.lines() if line["measure"] == measure}
    done = {row: [cell for cell in cells if cell.state["done"] == RUNS] for row, cells in grid.cells.items()}
    done = {row: cells for row, cells in done.items() if cells}
    figure = panels.new_figure(9.0, 1.5 + 0.35 * max(len(done), 4), grid.table["title"])
    curves, scores, differences = figure.subplots(1, 3, gridspec_kw={"width_ratios": [1.3, 1, 1]})
    for height, (color, (row, cells)) in enumerate(zip(panels.class_colors(len(done)), done.items())):
        for cell in cells:
            curves.plot(*zip(*cell.curve(metric)), color=color, linewidth=1.0)
        means = [np.nanmean(list(cell.scores(metric)["mean"].values())) for cell in cells]
        scores.plot(means, [height] * len(means), "o", color=color, markersize=4, alpha=0.8)
        scores.plot([np.mean(means)] * 2, [height - 0.3, height + 0.3], color=color)
        _difference(differences, height, color, lines[row])
    curves.set_xlabel("iteration", fontsize=7)
    scores.set_yticks(range(len(done)), [row.replace(", ", ",\n") for row in done])
    scores.set_xlabel(f"{measure}, {grid.cells[next(iter(done))][0].section} section", fontsize=7)
    differences.set_yticks([])
    differences.axvline(0, color="gray", linewidth=0.8)
    differences.set_xlabel("difference to the baseline", fontsize=7)
    diamond = " (diamond: the paper's)" if any(lines[row].get("paper") for row in done) else ""
    titles = ("validation", "a dot per seed", f"95 % interval{diamond}")
    for axis, title in zip((curves, scores, differences), titles):
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
    for axis in (scores, differences):
        axis.locator_params("x", nbins=5)
        axis.set_ylim(len(done) - 0.5, -0.5)
    return figure


def _difference(axis: Any, height: int, color: Any, line: dict[str, str]) -> None:
    numbers = [float(number) for number in re.findall(r"[+-]\d\.\d+", line.get("difference", ""))]
    if numbers:
        mean, low, high = numbers
        axis.plot([low, high], [height, height], color=color)
        axis.plot(mean, height, "o", color=color, markersize=4)
    if line.get("paper", "").startswith(("+", "-")):
        axis.plot(float(line["paper"]), height, "D", color="gray", markersize=4, fillstyle="none")


if __name__ == "__main__":
    for name, grid in finished_tables().items():
        grid.write()
        print(panels.save(comparison(grid), IMAGES / f"evidence_{name}.png"))
