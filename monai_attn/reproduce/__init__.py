# SPDX-License-Identifier: Apache-2.0
"""The papers' tables, run through the bundles' own configurations: ``monai-attn reproduce``."""

from __future__ import annotations

from monai_attn.reproduce.cells import Cell, CellError, Grid, Settings
from monai_attn.reproduce.papers import TABLES, find_table, tables_of
from monai_attn.reproduce.report import Line, lines, paired_test, to_csv, to_latex, to_markdown
from monai_attn.reproduce.run import reproduce
from monai_attn.reproduce.table import Row, Table

__all__ = [
    "TABLES",
    "Cell",
    "CellError",
    "Grid",
    "Line",
    "Row",
    "Settings",
    "Table",
    "find_table",
    "lines",
    "paired_test",
    "reproduce",
    "tables_of",
    "to_csv",
    "to_latex",
    "to_markdown",
]
