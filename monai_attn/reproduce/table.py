# SPDX-License-Identifier: Apache-2.0
"""What a table of a paper consists of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monai_attn.errors import ConfigError

__all__ = ["Row", "Table"]


@dataclass(frozen=True)
class Row:
    """A method of a table: how a bundle is made to train it, and what the paper has measured.

    Attributes:
        name: the method.
        overrides: entries of the bundle's configuration that make it this method.
        small: further ones that make it narrow, beside those of the table.
        paper: the paper's values by measure, such as ``{"Dice": "0.867"}``; empty where they are not known to us.
        baseline: the row that it is compared with, case by case; empty for a baseline.

    Example:
        >>> Row("SD-Net + scSE", {"se": "scse"}, paper={"Dice": "0.867"}, baseline="SD-Net").paper["Dice"]
        '0.867'
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    small: Mapping[str, Any] = field(default_factory=dict)
    paper: Mapping[str, str] = field(default_factory=dict)
    baseline: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        paper: short name of the paper, such as ``"scse"``.
        number: number of the table, as the paper writes it.
        title: what it compares.
        data: the paper's data.
        bundle: name of the bundle whose configurations are run.
        rows: the methods.
        measures: name of a measure to the metric of the bundle; none for a table of parameters, which needs no data.
        structures: whether each structure is a measure of its own, beside the mean over them.
        small: entries that make all rows narrow and short, to be had in minutes on a CPU.
        note: what a reader of the table must know.

    Example:
        >>> rows = (Row("plain", {"se": None}), Row("scSE", {"se": "scse"}, baseline="plain"))
        >>> Table("mine", "1", "On my data", "", "brain_mri_scse_segmentation", rows).measures
        {}
    """

    paper: str
    number: str
    title: str
    data: str
    bundle: str
    rows: tuple[Row, ...]
    measures: Mapping[str, str] = field(default_factory=dict)
    structures: bool = False
    small: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def check_rows(self, names: Sequence[str]) -> None:
        """Refuse names of rows that the table does not have.

        Raises:
            ConfigError: if there is no row of a name.
        """
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                problem = f"table {self.number} of {self.paper} has no such row"
                raise ConfigError(f"row {name!r}", problem, f"give one of {', '.join(map(repr, known))}")
