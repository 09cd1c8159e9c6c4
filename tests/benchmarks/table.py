# SPDX-License-Identifier: Apache-2.0
"""All benchmarks in one table, at the sizes that take 10 to 15 minutes on two cores; `make bench` runs it.

Every script beside this one runs alone, too, with options.
"""

from itertools import chain

import argmax
import autofocus
import edges
import measure
import scse
import slices
import training
import waits

if __name__ == "__main__":
    benchmarks = scse, autofocus, slices, training, edges, argmax, waits
    measure.print_table(chain.from_iterable(benchmark.rows() for benchmark in benchmarks))
