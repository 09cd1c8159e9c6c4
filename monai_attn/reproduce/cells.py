# SPDX-License-Identifier: Apache-2.0
"""The cells of a table: each a method with a seed, trained and evaluated by the commands that a user would type."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from monai_attn.errors import ConfigError, DataError
from monai_attn.reproduce.table import Row, Table
from monai_attn.run.bundle import find_bundle, parse_override, read_bundle

__all__ = ["Cell", "CellError", "Grid", "Settings"]

_TRAIN, _EVALUATE = ("train",), ("train", "evaluate")


class Settings(NamedTuple):
    """With what a table is reproduced.

    Attributes:
        dataset_dir: the data set; None to count parameters only.
        output_dir: folder of the cells and of the table.
        seeds: seeds of the trainings.
        bundle: folder or name of a bundle that is run in place of the table's.
        small: whether the networks are narrow and the trainings short, as the table says.
        overrides: overrides of entries for all cells, ``KEY=VALUE``.
        section: section of the data set that is scored; by default that of the bundle.
        rows: names of the rows to run; by default all.
        processes: number of processes of each training, started by torchrun.

    Example:
        >>> Settings("data/malc", Path("out"), seeds=(0, 1, 2), overrides=("batch_size=8",)).small
        False
    """

    dataset_dir: str | None
    output_dir: Path
    seeds: tuple[int, ...] = (0,)
    bundle: str = ""
    small: bool = False
    overrides: tuple[str, ...] = ()
    section: str = ""
    rows: tuple[str, ...] = ()
    processes: int = 1


class CellError(RuntimeError):
    """A training or an evaluation ended with an error.

    Example:
        >>> raise CellError("U-Net, seed 0: `train` ended with exit code 2: cannot use data/malc")
        Traceback (most recent call last):
        monai_attn.reproduce.cells.CellError: U-Net, seed 0: `train` ended with exit code 2: cannot use data/malc
    """


class Cell:
    """A method of a table with a seed.

    It is finished when the manifest of its evaluation says so; what made it stands there too, so a folder that was made
    with other settings is not taken for it.

    Args:
        row: the method.
        seed: the seed.
        folder: where its weights, scores and logs lie.
        bundle: folder of the bundle.
        overrides: overrides of entries.
        evaluation: further ones for the evaluation.
        processes: number of processes.

    Example:
        ``for command in Grid(table, settings).cells[0].commands(): print(shlex.join(command))``
    """

    def __init__(
        self,
        row: Row,
        seed: int,
        folder: Path,
        *,
        bundle: Path,
        overrides: Mapping[str, Any],
        evaluation: Mapping[str, Any],
        processes: int = 1,
    ) -> None:
        self.row, self.seed, self.folder, self.bundle, self.processes = row, seed, folder, bundle, processes
        places = {"bundle_root": bundle, "output_dir": folder, "ckpt_dir": folder}
        common = {**places, **overrides, "seed": seed}
        # the name of a run, as in its manifest and log, its configurations and its overrides
        self.runs: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
            "train": (_TRAIN, _as_text({**common, "resume": "auto"})),
            "evaluate": (_EVALUATE, _as_text({**common, **evaluation})),
        }

    @property
    def name(self) -> str:
        """The cell in words."""
        return f"{self.row.name}, seed {self.seed}"

    def commands(self) -> list[list[str]]:
        """What trains and what evaluates the cell."""
        return [self._command(*run) for run in self.runs.values()]

    def _command(self, configs: Sequence[str], overrides: Mapping[str, str]) -> list[str]:
        launcher = [sys.executable, "-m"]
        if self.processes > 1:
            launcher += ["torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}", "-m"]
            configs = [*configs, f"multi_gpu_{configs[-1]}"]
        files = [str(self.bundle / "configs" / f"{name}.json") for name in configs]
        options = [text for key, value in overrides.items() for text in (f"--{key}", value)]
        return [
            *launcher,
            "monai.bundle",
            "run",
            "--config_file",
            files[0] if len(files) == 1 else str(files),
            *options,
        ]

    def is_finished(self, run: str = "evaluate") -> bool:
        """Whether the cell has been evaluated, or trained.

        Raises:
            ConfigError: if its folder was made with other settings.
        """
        manifest = self._manifest(run)
        if not manifest:
            return False
        expected = {key: value for key, value in self.runs[run][1].items() if key != "bundle_root"}
        found = {key: value for key, value in manifest["overrides"].items() if key != "bundle_root"}
        if found != expected:
            keys = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
            differences = "; ".join(f"{key} was {found.get(key, 'not given')}" for key in keys)
            raise ConfigError(
                str(self.folder), f"it was made with other settings: {differences}", "give another --output_dir"
            )
        return manifest["state"] == "finished"

    def run(self) -> None:
        """Train and evaluate, as far as that is not done; what is printed goes to ``cell.log``.

        Raises:
            CellError: if one of the commands fails.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for run, command in zip(self.runs, self.commands()):
            if self.is_finished(run):
                continue
            log = self.folder / "cell.log"
            with log.open("a", encoding="utf-8") as file:
                file.write(f"{shlex.join(command)}\n")
                file.flush()
                start = log.stat().st_size  # what earlier attempts ended with is not asked for
                code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
            if code:
                raise CellError(f"{self.name}: `{run}` ended with exit code {code}: {_last_words(log, start)}")

    @property
    def minutes(self) -> float:
        """How long training and evaluation took: processor time on a CPU, else time on the clock."""
        manifests = [self._manifest(run) for run in self.runs]
        clocks = ["seconds" if manifest.get("gpu") else "cpu_seconds" for manifest in manifests]
        return sum(manifest.get(clock, 0.0) for manifest, clock in zip(manifests, clocks)) / 60

    @property
    def on_gpu(self) -> bool:
        """Whether it was trained where there is a GPU."""
        return bool(self._manifest("train").get("gpu"))

    def scores(self, metric: str) -> dict[str, dict[str, float]]:
        """The scores of a metric: structure, or ``mean``, to case to score; NaN where a case has none of it.

        Raises:
            DataError: if the table of the evaluation is not there, or not to be read.
        """
        path = self.folder / f"{metric}_raw.csv"
        try:
            with path.open(encoding="utf-8", newline="") as file:
                header, *rows = csv.reader(file)
            return {
                structure: {row[0]: float(row[column]) for row in rows}
                for column, structure in enumerate(header)
                if column > 0
            }
        except (OSError, ValueError, IndexError) as error:
            raise DataError(str(path), f"no scores to be read: {error}", "remove the cell's folder") from error

    def _manifest(self, run: str) -> dict[str, Any]:
        path = self.folder / f"{run}_run.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class Grid:
    """All cells of a table.

    Args:
        table: the table.
        settings: with what it is reproduced.

    Raises:
        ConfigError: if the bundle or a row is not there, or the bundle has no such entry as an override names.

    Example:
        ``Grid(find_table("scse", "VI"), Settings("data/malc", Path("out"))).cells[0].run()``
    """

    def __init__(self, table: Table, settings: Settings) -> None:
        table.check_rows(settings.rows)
        self.table, self.settings = table, settings
        self.bundle = find_bundle(settings.bundle or table.bundle)
        for row in table.rows:
            read_bundle(self.bundle, _EVALUATE, self._overrides(row))
        # all methods with the first seed before the second one, so that a grid cut short compares them
        self.cells = [self._cell(row, seed) for seed in settings.seeds for row in table.rows] if table.measures else []

    def _overrides(self, row: Row) -> dict[str, Any]:
        small = {**self.table.small, **row.small} if self.settings.small else {}
        return {**row.overrides, **small, **dict(map(parse_override, self.settings.overrides))}

    def _cell(self, row: Row, seed: int) -> Cell:
        folder = self.settings.output_dir / _slug(row.name) / f"seed_{seed}"
        data = {"dataset_dir": self.settings.dataset_dir}
        evaluation = {"val_section": self.settings.section} if self.settings.section else {}
        return Cell(
            row,
            seed,
            folder,
            bundle=self.bundle,
            overrides={**data, **self._overrides(row)},
            evaluation=evaluation,
            processes=self.settings.processes,
        )

    @property
    def wanted(self) -> list[Cell]:
        """The cells that are to be run."""
        rows = self.settings.rows
        return [cell for cell in self.cells if cell.row.name in rows or not rows]

    def of(self, row: Row) -> list[Cell]:
        """The cells of a method."""
        return [cell for cell in self.cells if cell.row is row]

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Name of a method to the number of parameters of its network."""
        configs = {row.name: read_bundle(self.bundle, _TRAIN, self._overrides(row)) for row in self.table.rows}
        networks = ((name, config.get_parsed_content("network_def")) for name, config in configs.items())
        return {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in networks}

    def next_fits(self, hours: float, done: Sequence[Cell]) -> bool:
        """Whether another cell, as long as the longest one so far, ends within a number of hours in all."""
        spent = [cell.minutes for cell in done]
        return hours > 0 and sum(spent) + max(spent, default=0.0) <= 60 * hours


def _last_words(log: Path, start: int) -> str:
    """The error that a bundle's run has ended with, behind so many bytes of its log, or where to look."""
    text = log.read_bytes()[start:].decode("utf-8", errors="replace")
    _, said, words = text.rpartition("monai_attn: ")
    return words.strip() if said else f"see {log}"


def _as_text(overrides: Mapping[str, Any]) -> dict[str, str]:
    """Overrides as the command line and the manifest have them."""
    # MONAI drops an override that is None
    return {key: "$None" if value is None else str(value) for key, value in overrides.items()}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
