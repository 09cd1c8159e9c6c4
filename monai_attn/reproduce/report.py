# SPDX-License-Identifier: Apache-2.0
"""A table as it came out: the paper's value beside ours, with its spread and the test against the baseline."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from monai.utils import optional_import

from monai_attn.reproduce.cells import Cell, Grid
from monai_attn.reproduce.table import Row

__all__ = ["LEAST_PAIRS", "Line", "lines", "paired_test", "structure_scores", "to_csv", "to_latex", "to_markdown"]

wilcoxon, _ = optional_import("scipy.stats", name="wilcoxon")

# of five pairs not even a difference of one sign in all of them gives p < 0.05
LEAST_PAIRS = 6
NOT_RUN = "not run"
_HEADER = ("method", "measure", "paper", "ours", "seeds", "n", "p", "parameters", "minutes")


class Line(NamedTuple):
    """A line of the table, in words.

    Attributes:
        method: the row of the paper's table.
        measure: what is measured.
        paper: the paper's value; empty if it is not known to us.
        ours: mean ± standard deviation over the cases, of each case's mean over the seeds.
        seeds: number of seeds, with the standard deviation of their means.
        n: number of cases.
        p: of Wilcoxon's signed-rank test, two-sided, against the baseline, or why there is none.
        parameters: number of parameters of our network, with the increase over the baseline.
        minutes: mean time of a training with its evaluation.

    Example:
        >>> Line("SD-Net", "Dice", "0.771").ours
        'not run'
    """

    method: str
    measure: str
    paper: str
    ours: str = NOT_RUN
    seeds: str = ""
    n: str = ""
    p: str = ""
    parameters: str = ""
    minutes: str = ""


def lines(grid: Grid) -> list[Line]:
    """The lines of a table, as far as its cells are finished; the others say that they were not run.

    Example:
        ``print(to_markdown(lines(Grid(find_table("scse", "I"), Settings(None, Path("out"))))))``
    """
    table = grid.table
    finished = {row.name: [cell for cell in grid.of(row) if cell.is_finished()] for row in table.rows}
    found = []
    for row in table.rows:
        own, base = grid.parameters[row.name], grid.parameters.get(row.baseline, 0)
        increase = f" (+{own - base:,}, {100 * (own / base - 1):.2f} %)" if base and own > base else ""
        counted = f"{own:,}{increase}"
        if not table.measures:
            found.append(Line(row.name, "parameters", row.paper.get("parameters", ""), "", parameters=counted))
        for measure, scores, baseline in _measures(grid, row, finished):
            found.append(_line(row, measure, scores, baseline, finished[row.name])._replace(parameters=counted))
    return found


def _measures(
    grid: Grid, row: Row, finished: Mapping[str, Sequence[Cell]]
) -> Iterator[tuple[str, list[dict[str, float]], list[dict[str, float]]]]:
    """The measures of a row, with the scores of each seed, and those of its baseline."""
    for measure, metric in grid.table.measures.items():
        own, base = ([cell.scores(metric) for cell in finished.get(name, ())] for name in (row.name, row.baseline))
        known = next(iter([*own, *base]), [name for name in row.paper if name != measure])
        names = [name for name in known if name != "mean"] if grid.table.structures else []
        for name in [*names, "mean"]:
            title = measure if name == "mean" else name
            yield title, [scores[name] for scores in own], [scores[name] for scores in base]


def structure_scores(grid: Grid) -> dict[str, dict[str, list[float]]]:
    """Method to structure to the first measure's score of each case, the mean over the seeds, of what is finished."""
    found: dict[str, dict[str, list[float]]] = {}
    metric = next(iter(grid.table.measures.values()), "")
    for row in grid.table.rows:
        seeds = [cell.scores(metric) for cell in grid.of(row) if cell.is_finished()]
        for structure in [name for name in (seeds[0] if seeds else ()) if name != "mean"]:
            cases = over_seeds([scores[structure] for scores in seeds])
            found.setdefault(row.name, {})[structure] = list(cases.values())
    return found


def _line(
    row: Row,
    measure: str,
    scores: Sequence[Mapping[str, float]],
    baseline: Sequence[Mapping[str, float]],
    cells: Sequence[Cell],
) -> Line:
    line = Line(row.name, measure, row.paper.get(measure, ""))
    if not scores:
        return line
    means = [float(np.nanmean(list(seed.values()))) for seed in scores]
    cases = over_seeds(scores)
    values = [value for value in cases.values() if not math.isnan(value)]
    p = "" if not row.baseline else paired_test(cases, over_seeds(baseline)) if baseline else f"{row.baseline} not run"
    return line._replace(
        ours=_spread(values),
        seeds=f"{len(means)}" + (f" (± {np.std(means, ddof=1):.3f})" if len(means) > 1 else ""),
        n=str(len(values)),
        p=p,
        minutes=f"{np.mean([cell.minutes for cell in cells]):.1f}",
    )


def over_seeds(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over the seeds of each case's score; NaN where the case has none of the structure."""
    return {case: float(np.mean([seed[case] for seed in scores])) for case in scores[0]} if scores else {}


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "no case has it"
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def paired_test(own: Mapping[str, float], baseline: Mapping[str, float]) -> str:
    """The p-value of Wilcoxon's signed-rank test over the cases that both have, or why there is none.

    Args:
        own: case to score.
        baseline: that of the method to compare with.

    Example:
        >>> paired_test({"a": 0.8, "b": 0.7}, {"a": 0.7, "b": 0.6})
        'n = 2 < 6'
        >>> names = "abcdef"
        >>> paired_test({name: 0.8 + 0.01 * i for i, name in enumerate(names)}, dict.fromkeys(names, 0.7))
        '0.031'
    """
    pairs = [(own[case], baseline[case]) for case in own if case in baseline]
    differences = [a - b for a, b in pairs if not math.isnan(a - b)]
    if len(differences) < LEAST_PAIRS:
        return f"n = {len(differences)} < {LEAST_PAIRS}"
    if not any(differences):
        return "no difference"
    p = float(wilcoxon(differences).pvalue)
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def to_csv(rows: Sequence[Line]) -> str:
    """The table as CSV.

    Example:
        >>> print(to_csv([Line("SD-Net", "Dice", "0.771")]))
        method,measure,paper,ours,seeds,n,p,parameters,minutes
        SD-Net,Dice,0.771,not run,,,,,
        <BLANKLINE>
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_HEADER, *rows])
    return text.getvalue()


def to_markdown(rows: Sequence[Line]) -> str:
    """The table as Markdown, its columns as wide as they need to be.

    Example:
        >>> print(to_markdown([Line("SD-Net", "Dice", "0.771")]).splitlines()[-1])
        | SD-Net | Dice    | 0.771 | not run |       |   |   |            |         |
    """
    widths = [max(map(len, column)) for column in zip(_HEADER, *rows)]
    return "".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths))} |\n"
        for row in (_HEADER, ["-" * width for width in widths], *rows)
    )


def to_latex(rows: Sequence[Line], caption: str) -> str:
    """The table as LaTeX, for the package booktabs.

    Example:
        >>> to_latex([Line("SD-Net", "Dice", "0.771")], "Networks").splitlines()[6][:34]
        'SD-Net & Dice & 0.771 & not run & '
    """
    body = [" & ".join(map(_latex, row)) + r" \\" for row in (_HEADER, *rows)]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_latex(caption)}}}",
            rf"\begin{{tabular}}{{{'l' * len(_HEADER)}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex(text: str) -> str:
    for sign, spelt in {"%": r"\%", "_": r"\_", "#": r"\#", "&": r"\&", "±": r"$\pm$", "<": "$<$"}.items():
        text = text.replace(sign, spelt)
    return text
