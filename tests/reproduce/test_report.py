# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from monai_attn.reproduce import Line, lines, paired_test, to_csv, to_latex, to_markdown

BASE = [0.5, 0.6, 0.7, 0.8, 0.5, 0.6]


def table_of(grid):
    return {(line.method, line.measure): line for line in lines(grid)}


def test_ours_is_over_the_cases_of_their_means_over_the_seeds(make_grid, finish):
    grid = make_grid(seeds=(0, 1))
    for cell in grid.of(grid.table.rows[0]):
        finish(cell, {"mean": [value + 0.02 * cell.seed for value in BASE]}, minutes=3.0)
    line = table_of(grid)["SD-Net", "Dice"]
    cases = np.array(BASE) + 0.01
    assert line.ours == f"{cases.mean():.3f} ± {cases.std(ddof=1):.3f}"
    assert line.seeds == f"2 (± {0.02 / math.sqrt(2):.3f})"
    assert (line.n, line.p, line.paper, line.minutes) == ("6", "", "0.771", "3.0")
    assert line.parameters == "1,812,636"


def test_a_method_is_tested_against_its_baseline_case_by_case(make_grid, finish):
    grid = make_grid()
    improved = [value + 0.01 * (1 + case) for case, value in enumerate(BASE)]
    finish(grid.cells[2], {"mean": improved})
    assert table_of(grid)["SD-Net + scSE", "Dice"].p == "SD-Net not run"
    finish(grid.cells[0], {"mean": BASE})
    found = table_of(grid)
    assert found["SD-Net + scSE", "Dice"].p == f"{wilcoxon(improved, BASE).pvalue:.3f}" == "0.031"
    assert found["SD-Net, 4 encoders and decoders", "Dice"].ours == "not run"
    assert found["SD-Net + scSE", "Dice"].parameters == "1,838,178 (+25,542, 1.41 %)"


def test_structures_are_measures_of_their_own_beside_the_papers(make_grid, finish):
    grid = make_grid("autofocus", "2")
    assert table_of(grid)["AFN-6", "enhancing"][2:4] == ("0.7562 ± 0.2502", "not run")
    finish(grid.cells[0], {"whole": [0.9, 0.8], "core": [math.nan, 0.5], "mean": [0.9, 0.65]})
    found = table_of(grid)
    assert [measure for method, measure in found if method == "Basic"] == ["whole", "core", "Dice"]
    assert found["Basic", "core"][2:6] == ("0.7261 ± 0.2639", "0.500", "1", "1")


def test_too_few_pairs_give_the_reason_in_place_of_a_p(make_grid, finish):
    grid = make_grid()
    finish(grid.cells[0], {"mean": BASE[:5]})
    finish(grid.cells[2], {"mean": [value + 0.1 for value in BASE[:5]]})
    assert table_of(grid)["SD-Net + scSE", "Dice"].p == "n = 5 < 6"


# without ties, for which scipy turns to a test by permutations that takes its time
@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30, unique_by=lambda pair: pair[0] - pair[1]
    )
)
@settings(max_examples=50, deadline=None)
def test_the_test_is_scipys_over_the_cases_that_both_have(pairs):
    own = {str(case): pair[0] for case, pair in enumerate(pairs)} | {"only here": 0.5, "empty": math.nan}
    base = {str(case): pair[1] for case, pair in enumerate(pairs)} | {"only there": 0.5, "empty": 0.5}
    differences = [a - b for a, b in pairs]
    found = paired_test(own, base)
    if len(pairs) < 6:
        assert found == f"n = {len(pairs)} < 6"
    elif not any(differences):
        assert found == "no difference"
    else:
        p = wilcoxon(differences).pvalue
        assert found == ("< 0.001" if p < 0.001 else f"{p:.3f}")


@pytest.fixture
def two_lines():
    return [
        Line("scSE_max", "Dice", "0.867", "0.9 ± 0.1", "1", "6", "< 0.001", "1,838 (+1.41 %)", "2.0"),
        Line("A, B & C #1", "Dice", ""),
    ]


def test_a_csv_is_read_back_as_it_was(two_lines):
    header, *rows = csv.reader(to_csv(two_lines).splitlines())
    assert header[:4] == ["method", "measure", "paper", "ours"]
    assert rows == [list(line) for line in two_lines]


def test_a_markdown_table_has_cells_of_equal_width(two_lines):
    rows = to_markdown(two_lines).splitlines()
    assert len(rows) == 4
    assert len({len(row) for row in rows}) == 1
    assert [cell.strip() for cell in rows[2].strip("|").split("|")] == list(two_lines[0])


def test_latex_has_its_signs_escaped(two_lines):
    text = to_latex(two_lines, "100 % of it")
    assert r"scSE\_max & Dice & 0.867 & 0.9 $\pm$ 0.1 & 1 & 6 & $<$ 0.001 & 1,838 (+1.41 \%) & 2.0 \\" in text
    assert r"A, B \& C \#1" in text
    assert r"\caption{100 \% of it}" in text
