# SPDX-License-Identifier: Apache-2.0
"""All tables of the four papers."""

from __future__ import annotations

from monai_attn.errors import ConfigError
from monai_attn.reproduce import autofocus, egcnn, focusnet, scse
from monai_attn.reproduce.table import Table

__all__ = ["TABLES", "find_table", "tables_of"]

TABLES: tuple[Table, ...] = (*scse.TABLES, *focusnet.TABLES, *autofocus.TABLES, *egcnn.TABLES)


def tables_of(paper: str = "") -> list[Table]:
    """The tables of a paper, or of all papers.

    Args:
        paper: short name of the paper: ``scse``, ``focusnet``, ``autofocus`` or ``egcnn``; empty for all.

    Raises:
        ConfigError: if there is no such paper.

    Example:
        >>> [table.number for table in tables_of("autofocus")]
        ['1', '2', '3', '4']
    """
    found = [table for table in TABLES if paper in ("", table.paper)]
    if not found:
        papers = ", ".join(dict.fromkeys(table.paper for table in TABLES))
        raise ConfigError(f"paper {paper!r}", "there is no such paper", f"give one of {papers}")
    return found


def find_table(paper: str, number: str) -> Table:
    """A table of a paper.

    Args:
        paper: short name of the paper.
        number: number of the table, as the paper writes it.

    Raises:
        ConfigError: if there is no such paper or table.

    Example:
        >>> find_table("autofocus", "2").title
        'Brain tumours'
    """
    tables = {table.number: table for table in tables_of(paper)}
    if number not in tables:
        raise ConfigError(f"table {number!r}", f"{paper} has no such table", f"give one of {', '.join(tables)}")
    return tables[number]
