# SPDX-License-Identifier: Apache-2.0
"""Run the tests of all faults, and write into docs/reliability.md which rows pass: those of which all tests do."""

import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
ROW = re.compile(r"^\| (\d+) \|(.*)\|[^|]*\|$", re.MULTILINE)


class Outcomes:
    """A pytest plugin that collects the outcomes of each row."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = {}
        self.outcomes: dict[int, set[str]] = defaultdict(set)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.rows = {item.nodeid: [mark.args[0] for mark in item.iter_markers("fault")] for item in items}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for row in self.rows[report.nodeid] if report.when == "call" or not report.passed else ():
            self.outcomes[row].add(report.outcome)

    def verdict(self, row: int) -> str:
        """The worst of its outcomes; what is skipped, as a picture by a bundle for volumes, does not count."""
        return next((word for word in ("failed", "passed", "skipped") if word in self.outcomes[row]), "not run")


def main() -> int:
    found = Outcomes()
    code = int(pytest.main(["-m", "fault", *sys.argv[1:]], plugins=[found]))
    text = PAGE.read_text(encoding="utf-8")
    text = ROW.sub(lambda match: f"| {match[1]} |{match[2]}| {found.verdict(int(match[1]))} |", text)
    PAGE.write_text(text, encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
