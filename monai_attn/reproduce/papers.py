# SPDX-License-Identifier: Apache-2.0
"""All tables of the four papers."""

from __future__ import annotations

from monai_attn.errors import ConfigError
from monai_attn.reproduce import autofocus, egcnn, focusnet, scse
from monai_attn.reproduce.table import Table

__all__ = ["TABLES", "find_table"]

TABLES: tuple[Table, ...] = (*scse.TABLES, *focusnet.TABLES, *autofocus.TABLES, *egcnn.TABLES)


def find_table(paper: str, number: str) -> Table:
    """A table of a paper.

    Args:
        paper: short name of the paper: ``scse``, ``focusnet``, ``autofocus`` or ``egcnn``.
        number: number of the table, as the paper writes it.

    Raises:
        ConfigError: if there is none.

    Example:
        >>> find_table("autofocus", "2").title
        'Brain tumours'
    """
    numbers = [table.number for table in TABLES if table.paper == paper]
    if not numbers:
        papers = ", ".join(dict.fromkeys(table.paper for table in TABLES))
        raise ConfigError(f"paper {paper!r}", "there is no such paper", f"give one of {papers}")
    for table in TABLES:
        if (table.paper, table.number) == (paper, number):
            return table
    raise ConfigError(f"table {number!r}", f"{paper} has no such table", f"give one of {', '.join(numbers)}")
