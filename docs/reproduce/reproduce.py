# SPDX-License-Identifier: Apache-2.0
"""Run a table of a paper through a bundle, and write it with the paper's values beside ours.

  python docs/reproduce/reproduce.py scse III --dataset_dir data/malc --seeds 0 1 2
  python docs/reproduce/reproduce.py split hippocampus --dataset_dir data/hippocampus --output_dir data/split

A cell, a method with a seed, is two commands of ``python -m monai.bundle run`` and a folder with the scores of every
case, curves and logs. The same call again continues where it was stopped, and adds new seeds and rows. Without a table
it lists them, without data it counts parameters. ``split`` writes a data list with a split of ``splits``.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fire.parser import DefaultParseValue
from monai.bundle import ConfigParser
from monai.utils import ensure_tuple
from scipy.stats import wilcoxon

from monai_attn.data.datalist import case_name, cases
from monai_attn.errors import DataError
from monai_attn.files import atomic_write

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
RUNS = ["train", "evaluate"]
HEADER = ("method", "measure", "paper", "ours", "seeds", "n", "difference", "p", "parameters", "minutes")
PLATEAU = 0.005  # gain of the validation in the last fifth of a training from which on it had not converged
COLUMNS = (
    "ours: mean ± standard deviation over the seeds; difference: to the row without the method, by seed and case, with "
    "95 % interval by bootstrap over both; p: Wilcoxon signed-rank test, two-sided; minutes: processor time of a cell."
)


class Cell:
    """A method of a table with a seed; ``cell.json`` in its folder says what is done, and by which commit."""

    def __init__(self, folder: Path, bundle: Path, seed: int, overrides: Mapping[str, Any], section: str) -> None:
        self.folder, self.bundle, self.seed = folder, bundle, seed
        # MONAI drops an override that is None
        self.settings = {key: "$None" if value is None else str(value) for key, value in overrides.items()}
        path = folder / "cell.json"
        done: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.section = section or done.get("settings", {}).get("val_section", "")
        settings = {**self.settings, "val_section": self.section}
        self.state = done or {"commit": "", "settings": settings, "done": [], "minutes": 0.0}
        if self.state["settings"] != settings:
            sys.exit(f"{folder} was made with other settings, {self.state['settings']}; give another --output_dir")

    def command(self, run: str, dataset_dir: str) -> list[str]:
        """Return the command of a run, ``train`` or ``evaluate``."""
        places = {"bundle_root": self.bundle, "output_dir": self.folder, "ckpt_dir": self.folder}
        # an evaluation has other handlers, the one that loads the weights among them
        settings = {key: self.settings[key] for key in self.settings if run == "train" or "handlers#" not in key}
        given = {"config_file": config_files(self.bundle, run), "dataset_dir": dataset_dir, **settings, **places}
        given |= {"seed": self.seed, **({"resume": "auto"} if run == "train" else {"val_section": self.section})}
        words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        return [sys.executable, "-m", "monai.bundle", "run", *words]

    def run(self, dataset_dir: str, commit: str) -> bool:
        """Train and evaluate, as far as that is not done, and return whether it went well; output is in cell.log."""
        self.save(commit=commit)
        for run in RUNS[len(self.state["done"]) :]:
            command, before = self.command(run, dataset_dir), sum(os.times()[2:4])
            with (log := self.folder / "cell.log").open("a", encoding="utf-8") as file:
                print(shlex.join(command), file=file, flush=True)
                path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # this checkout comes first
                done = subprocess.run(command, stdout=file, stderr=file, env={**os.environ, "PYTHONPATH": path})
            self.save(minutes=self.state["minutes"] + (sum(os.times()[2:4]) - before) / 60)  # of the processor
            if done.returncode:
                end = log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-4:]
                print(f"  exit code {done.returncode} of {run}, see {log}:", *end, sep="\n    ", file=sys.stderr)
                return False
            self.save(done=[*self.state["done"], run])
        return True

    def save(self, **changes: Any) -> None:
        """Write down what is done."""
        self.state |= changes
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.folder / "cell.json") as draft:
            draft.write_text(json.dumps(self.state, indent=1), encoding="utf-8")

    def scores(self, metric: str) -> dict[str, dict[str, float]]:
        """Read the scores of a metric: structure, or ``mean``, to case to score, NaN where a case has none of it.

        Of a metric without scores by case there is the mean, of a case without a name.
        """
        if not (self.folder / f"{metric}_raw.csv").is_file():
            with (self.folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
                return {"mean": {"": float(dict(csv.reader(file))[metric])}}
        with (self.folder / f"{metric}_raw.csv").open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        return {name: {row[0]: float(row[i]) for row in rows} for i, name in enumerate(header) if i > 0}

    def curve(self, metric: str) -> list[tuple[int, float]]:
        """Read a metric of the validation by iteration."""
        with (self.folder / "curves.csv").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["name"] == metric]
        return [(int(row["iteration"]), float(row["value"])) for row in rows]

    def converged(self, metric: str) -> bool:
        """Return whether the last fifth of the training did not improve the validation."""
        points = self.curve(metric)
        before = [value for iteration, value in points if iteration <= 0.8 * points[-1][0]]
        return max((value for _, value in points), default=0.0) < max(before, default=0.0) + PLATEAU


class Grid:
    """The cells of a table, and the table itself."""

    def __init__(self, paper: Mapping[str, Any], options: argparse.Namespace) -> None:
        self.paper, self.options, self.table = paper, options, paper["tables"][options.table]
        self.output = Path(options.output_dir or FOLDER / "results" / f"{options.paper}_{options.table}")
        self.measures = self.table.get("measures", {})
        self.parameters: dict[str, int] = {}
        self.cells: dict[str, list[Cell]] = {}
        bundle = ROOT / "bundles" / self.table["bundle"]
        given = {key: DefaultParseValue(value) for key, _, value in (text.partition("=") for text in options.set)}
        section = "test" if "split" in self.table else ""
        section = options.section or section or (scored_section(options.dataset_dir) if options.dataset_dir else "")
        for row in self.table["rows"]:
            if "overrides" not in row:  # a method of which only the paper's values are listed
                continue
            small = {**self.table.get("small", {}), **row.get("small", {})} if options.small else {}
            overrides = {**self.table.get("overrides", {}), **row["overrides"], **small, **given}
            self.parameters[row["name"]] = count_parameters(bundle, overrides)
            folder = self.output / re.sub(r"[^a-z0-9]+", "_", row["name"].lower()).strip("_")
            cells = [Cell(folder / f"seed_{s}", bundle, s, overrides, section) for s in options.seeds]
            self.cells[row["name"]] = cells

    def commit(self, *this: str) -> str:
        """Return the commit that made the cells, and refuse several."""
        found = {*this, *(cell.state["commit"] for cells in self.cells.values() for cell in cells)} - {""}
        if len(found) > 1:
            sys.exit(f"{self.output} has cells of {', '.join(found)}, and a table comes from one commit")
        return min(found, default="")

    def run(self) -> bool:
        """Run the cells that are not finished, a seed after the other, and return whether all of them went well."""
        by_seed = zip(*(self.cells[row] for row in self.options.rows or self.cells))
        missing = [cell for same_seed in by_seed for cell in same_seed if cell.state["done"] != RUNS]
        if not (missing and self.measures and self.options.dataset_dir):
            return True
        commit, went_well = self.commit(code_commit()), True
        for cell in missing:
            print(cell.folder, file=sys.stderr)
            went_well &= cell.run(self.data(cell.seed), commit)
            self.write()
        return went_well

    def data(self, seed: int) -> str:
        """Return the folder of the data of a seed: with a split, that of a list of its fold, a fold for each seed."""
        source = str(self.options.dataset_dir)
        if "split" not in self.table:
            return source
        fold = seed % len(folds(self.table["split"]))
        return split_data(source, self.table["split"], fold, self.output / f"fold_{fold}")

    def write(self) -> str:
        """Write the table, as far as it is there, as ``table.md`` and ``table.csv``, and return the former."""
        rows = [HEADER, *([line.get(column, "") for column in HEADER] for line in self.lines())]
        widths = [max(map(len, column)) for column in zip(*rows)]
        table = [" | ".join(text.ljust(width) for text, width in zip(row, widths)) for row in rows]
        table.insert(1, " | ".join("-" * width for width in widths))
        options, about = self.options, self.table
        facts = [f"Table {options.table} of {self.paper['reference']}: {about['title']}. Its data: {about['data']}."]
        if commit := self.commit():
            section = next(cell.section for cells in self.cells.values() for cell in cells if cell.state["commit"])
            chosen = " (on which the weights were chosen)" if section == "validation" else ""
            given = [Path(options.dataset_dir or "").name, f"section {section}{chosen}", about["bundle"], *options.set]
            small = "; narrow networks, short trainings" if options.small else ""
            facts += [f"Ours: {', '.join(filter(None, given))}{small}; commit {commit}.", COLUMNS]
        facts += [source["note"] for source in (about, self.paper) if "note" in source]
        text = "\n\n".join([*facts, "".join(f"| {line} |\n" for line in table)])
        self.output.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.output / "table.md") as draft:
            draft.write_text(text, encoding="utf-8")
        with atomic_write(self.output / "table.csv") as draft, draft.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        return text

    def lines(self) -> Iterator[dict[str, str]]:
        """Return the lines of the table, by column."""
        for row in self.table["rows"]:
            name, base, paper = row["name"], row.get("baseline", ""), row.get("paper", {})
            if name not in self.cells:
                yield from ({"method": name, "measure": key, "paper": paper[key]} for key in paper)
                continue
            own, other = self.parameters[name], self.parameters.get(base, 0)
            added = f" (+{own - other:,}, {100 * (own / other - 1):.2f} %)" if 0 < other < own else ""
            done, against = ([c for c in self.cells.get(key, ()) if c.state["done"] == RUNS] for key in (name, base))
            minutes = f"{np.mean([cell.state['minutes'] for cell in done]):.1f}" if done else ""
            common = {"method": name, "parameters": f"{own:,}{added}", "minutes": minutes}
            if not self.measures:
                yield {**common, "measure": "parameters", "paper": paper.get("parameters", "")}
            for measure, metric in self.measures.items():
                scores, bases = ({cell.seed: cell.scores(metric) for cell in cells} for cells in (done, against))
                parts = [*next(iter(scores.values()), {key: 0 for key in paper if key != measure} | {"mean": 0})]
                groups = self.table.get("groups") or {part: [part] for part in parts}
                groups = {"mean": ["mean"], **(groups if self.table.get("structures") == measure else {})}
                early = "" if all(cell.converged(metric) for cell in done) else ", not converged"
                for part, names in groups.items():
                    title = measure if part == "mean" else part
                    ours, theirs = ({seed: pool(found, names) for seed, found in of.items()} for of in (scores, bases))
                    found = statistics(ours, theirs)
                    found["ours"] += early
                    yield {**common, "measure": title, "paper": paper.get(title, ""), **found}


def folds(split: str) -> list[dict[str, list[str]]]:
    """Read the folds of a split, each a list of case names for every section."""
    found: list[dict[str, list[str]]] = json.loads((FOLDER / "splits" / f"{split}.json").read_text(encoding="utf-8"))
    return found


def split_data(source: str, split: str, fold: int, folder: Path) -> str:
    """Write a ``dataset.json`` with a fold of the cases of a data set, and return its folder."""
    known = {}
    for section in ("training", "validation", "test"):
        with suppress(DataError):  # without such a section
            known |= {case_name(ensure_tuple(case["image"])[0]): case for case in cases(source, section)}
    sections = folds(split)[fold]
    if missing := [name for names in sections.values() for name in names if name not in known]:
        sys.exit(f"{source} lacks {len(missing)} cases of the split '{split}': {missing[:3]}")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / "dataset.json") as draft:
        found = {section: [known[name] for name in names] for section, names in sections.items()}
        draft.write_text(json.dumps(found), encoding="utf-8")
    return str(folder)


def pool(scores: Mapping[str, Mapping[str, float]], structures: Sequence[str]) -> dict[str, float]:
    """Return the mean score of some structures by case."""
    cases = scores[structures[0]]
    known = {case: [scores[name][case] for name in structures if not np.isnan(scores[name][case])] for case in cases}
    return {case: float(np.mean(values)) if values else np.nan for case, values in known.items()}


def statistics(ours: Mapping[int, Mapping[str, float]], base: Mapping[int, Mapping[str, float]]) -> dict[str, str]:
    """Return mean and spread of a method, and its difference to a baseline, both as seed to case to score."""
    if not ours:
        return {"ours": "not run"}
    means = [np.nanmean(list(scores.values())) for scores in ours.values()]
    spread = f" ± {np.std(means, ddof=1):.3f}" if len(means) > 1 else ""
    cases = sorted({case for scores in ours.values() for case, score in scores.items() if not np.isnan(score)})
    found = {"ours": f"{np.mean(means):.3f}{spread}", "seeds": str(len(means)), "n": str(len(cases))}
    if cases == [""]:
        return {name: found[name] for name in ("ours", "seeds")}
    seeds = [seed for seed in ours if seed in base]
    pairs = np.array([[ours[s].get(case, np.nan) - base[s].get(case, np.nan) for case in cases] for s in seeds])
    if not seeds or not (pairs := pairs[:, ~np.isnan(pairs).all(axis=0)]).size:
        return found
    random, known = np.random.default_rng(0), ~np.isnan(pairs)  # the seed of a fold has only its own cases
    weights = [random.multinomial(size, [1 / size] * size, 2000) for size in pairs.shape]  # how often each is drawn
    sums, counts = (np.einsum("is,sc,ic->i", weights[0], part, weights[1]) for part in (np.nan_to_num(pairs), known))
    low, high = np.quantile(sums[counts > 0] / counts[counts > 0], (0.025, 0.975))
    found["difference"] = f"{pairs[known].mean():+.3f} [{low:+.3f}, {high:+.3f}]"
    if len(seeds) > 1:  # else nobody knows what luck can do
        by_case = np.nanmean(pairs, axis=0)
        p = wilcoxon(by_case).pvalue if by_case.any() else 1.0
        found["p"] = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return found


def scored_section(dataset_dir: str) -> str:
    """Return ``test`` if the data set has labeled cases there, else ``validation``."""
    try:
        return "test" if all("label" in case for case in cases(dataset_dir, "test")) else "validation"
    except DataError:
        return "validation"


def config_files(bundle: Path, run: str = "train") -> list[str]:
    """Return the configurations of a run of a bundle, its baselines among them."""
    files = [bundle / "configs" / f"{name}.json" for name in dict.fromkeys(["train", "baselines", run])]
    return [str(file) for file in files if file.is_file()]


def count_parameters(bundle: Path, overrides: Mapping[str, Any]) -> int:
    """Count the parameters of the network of a row."""
    parser = ConfigParser()
    parser.read_config(config_files(bundle))
    parser.update({"bundle_root": str(bundle), **overrides})
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in parser.get_parsed_content("network_def").parameters())


def code_commit() -> str:
    """Return the last commit that changed the package or a configuration."""
    places = ["--", str(ROOT / "monai_attn"), str(ROOT / "bundles/*/configs")]
    if changes := subprocess.check_output(["git", "status", "--porcelain", *places], text=True, cwd=ROOT):
        sys.exit(f"a cell cannot name changes that are not committed; commit them, or use a worktree:\n{changes}")
    return subprocess.check_output(["git", "log", "-1", "--format=%H", *places], text=True, cwd=ROOT)[:12]


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing of a table and print it; returns 0, or 3 if a cell failed."""
    papers = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(FOLDER.glob("*.json"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paper", nargs="?", choices=[*papers, "split"])
    parser.add_argument("table", nargs="?", help="number of the table, such as III, or name of the split")
    parser.add_argument("--dataset_dir", help="data set to train on; without it, nothing is run")
    parser.add_argument("--output_dir", help="folder of the cells (default: docs/reproduce/results/<paper>_<table>)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds of the trainings (default: 0)")
    parser.add_argument("--small", action="store_true", help="narrow networks and short trainings, for a CPU")
    parser.add_argument("--section", default="", help="section to score (default: test, else validation)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides, for all cells")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="run only these rows (default: all)")
    options = parser.parse_args(argv)
    if options.paper == "split":
        print(split_data(options.dataset_dir, options.table, options.seeds[0], Path(options.output_dir)))
        return 0
    tables = {f"{paper} {number}": table for paper in papers for number, table in papers[paper]["tables"].items()}
    if (table := tables.get(f"{options.paper} {options.table}")) is None:
        print(*(f"{name}: {table['title']} ({table['data']})" for name, table in tables.items()), sep="\n")
        return 2 if options.table else 0
    names = [row["name"] for row in table["rows"] if "overrides" in row]
    if unknown := set(options.rows or ()) - set(names):
        parser.error(f"the table has no rows {unknown} to run; give some of {names}")
    grid = Grid(papers[options.paper], options)
    went_well = grid.run()
    print(grid.write())
    return 0 if went_well else 3


if __name__ == "__main__":
    sys.exit(main())
