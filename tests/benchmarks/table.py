# SPDX-License-Identifier: Apache-2.0
"""All benchmarks in one table, and the figure of the cost against the size; `make bench` runs it.

Those of the goals are rows of docs/performance.md. Every script beside this one runs alone, too, with options.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import argmax
import autofocus
import cost
import edges
import measure
import scse
import slices
import startup
import training

# the sizes that take a quarter of an hour in all on two cores
BENCHMARKS: list[Callable[[], Iterable[measure.Row]]] = [
    scse.rows,
    autofocus.rows,
    slices.rows,
    training.rows,
    lambda: edges.rows(sides=(64,)),
    lambda: argmax.rows(side=96),
    startup.rows,
]


def rows() -> Iterator[measure.Row]:
    for benchmark in BENCHMARKS:
        yield from benchmark()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="folder for the figure and its numbers")
    out = parser.parse_args().out
    measure.print_table(rows())
    cost.measure_all(out)
