# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "reliability.md").read_text("utf-8")


def test_every_row_of_the_table_has_a_test_and_every_test_a_row():
    rows = [int(row) for row in re.findall(r"^\| (\d+) \|", TABLE, re.M)]
    tests = "".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert rows == sorted({int(row) for row in re.findall(r"fault\((\d+)\)", tests)})
    assert rows[:70] == list(range(1, 71))


def test_all_rows_of_the_table_pass():
    assert set(re.findall(r"^\| \d+ \|.*\| ([^|]*) \|$", TABLE, re.M)) == {"passed"}
