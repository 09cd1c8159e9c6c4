# SPDX-License-Identifier: Apache-2.0
"""The table of faults in the documentation is that of the tests."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_of_the_table_has_a_test_and_every_test_a_row():
    rows = [
        int(row) for row in re.findall(r"^\| (\d+) \|", (ROOT / "docs" / "reliability.md").read_text("utf-8"), re.M)
    ]
    marked = {
        int(row)
        for path in (ROOT / "tests").rglob("test_*.py")
        for row in re.findall(r"fault\((\d+)\)", path.read_text("utf-8"))
    }
    assert rows == sorted(marked)
    assert rows[:70] == list(range(1, 71))


def test_all_rows_of_the_table_pass():
    verdicts = re.findall(r"^\| \d+ \|.*\| ([^|]*) \|$", (ROOT / "docs" / "reliability.md").read_text("utf-8"), re.M)
    assert set(verdicts) == {"passed"}
