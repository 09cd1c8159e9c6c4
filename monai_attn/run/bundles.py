# SPDX-License-Identifier: Apache-2.0
"""Find and describe bundles, using only the standard library."""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_attn.errors import ConfigError, DataError
from monai_attn.run.options import set_entry

__all__ = [
    "config_files", "copy_bundle", "data_sets", "describe", "find_bundle", "named_bundles", "named_configs",
    "own_weights", "read_entries", "show_command", "table",
]  # fmt: skip

_PACKAGE = Path(__file__).resolve().parents[1]


def named_bundles() -> dict[str, Path]:
    """Return the bundles that come with the package, by name.

    Example:
        >>> "hippocampus_mri_scse_segmentation" in named_bundles()
        True
    """
    installed, clone = _PACKAGE / "bundles", _PACKAGE.parent / "bundles"
    root = installed if installed.is_dir() else clone
    return {path.parents[1].name: path.parents[1] for path in sorted(root.glob("*/configs/train.json"))}


def find_bundle(bundle: str | Path) -> Path:
    """Return the folder of a bundle.

    Args:
        bundle: a folder, or the name of a bundle that comes with the package, or an unambiguous part of one.

    Raises:
        ConfigError: if there is no such bundle, with the nearest one, or several.

    Example:
        >>> find_bundle("hippocampus_mri_scse").name
        'hippocampus_mri_scse_segmentation'
    """
    if (Path(bundle) / "configs").is_dir():
        return Path(bundle)
    known, name = named_bundles(), str(bundle)
    matches = [key for key in known if key == name] or [key for key in known if name and name in key]
    if len(matches) == 1:
        return known[matches[0]]
    if matches:
        raise ConfigError(name, f"it matches several bundles: {', '.join(matches)}", "give more of the name")
    nearest = difflib.get_close_matches(name, [key.removesuffix("_segmentation") for key in known], n=1, cutoff=0.4)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise ConfigError(name, "there is no such bundle", f"{hint}`monai-attn list` shows them all")


def config_files(folder: Path, kind: str, more: Sequence[str] = ()) -> list[Path]:
    """Return the configurations of a run, also under ``torchrun``.

    Args:
        folder: the bundle.
        kind: ``"train"``, ``"evaluate"`` or ``"inference"``.
        more: names of other configurations of the bundle, such as ``"baselines"``.

    Raises:
        ConfigError: if the bundle has no such configuration.

    Example:
        >>> [path.stem for path in config_files(find_bundle("kits_ct"), "evaluate", ["baselines"])]
        ['train', 'baselines', 'evaluate']
    """
    names = ["inference", *more] if kind == "inference" else ["train", *more, *(["evaluate"] * (kind == "evaluate"))]
    if kind != "inference" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        names.append(f"multi_gpu_{kind}")
    return named_configs(folder, names)


def copy_bundle(folder: Path, target: Path) -> Path:
    """Copy a bundle without results, and return the copy.

    It works in any folder. Links out of the folder become text in the card. The options of its weights become its
    defaults, since MONAI does not read ``model.json``.

    Raises:
        DataError: if the folder is there already.

    Example:
        ``copy_bundle(find_bundle("hippocampus_mri_scse"), Path("my_bundle"))``
    """
    if target.exists():
        raise DataError(str(target), "it is there already", "give a folder that is to be made")
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("eval", "__pycache__"))
    if (card := target / "docs" / "README.md").is_file():
        text = card.read_text(encoding="utf-8")
        card.write_text(re.sub(r"\[([^]]*)\]\(\.\./\.\.[^)]*\)", r"\1", text), encoding="utf-8")
    model = read_entries([path]) if (path := target / "models" / "model.json").is_file() else {}
    for file in named_configs(target, ["train", "inference"]) if model.get("options") else []:
        entries = read_entries([file])
        for key, value in model["options"].items():
            set_entry(entries, key, value)
        file.write_text(json.dumps(entries, indent=4), encoding="utf-8")
    return target


def named_configs(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the configurations of these names.

    Raises:
        ConfigError: if the bundle has no such configuration.
    """
    files = [folder / "configs" / f"{name}.json" for name in names]
    for file in files:
        if not file.is_file():
            present = ", ".join(sorted(path.stem for path in file.parent.glob("*.json")))
            raise ConfigError(file.stem, f"{folder.name} has no such configuration, but {present}", "give one of these")
    return files


def read_entries(files: Sequence[Path]) -> dict[str, Any]:
    """Return the entries of configurations as they stand in the files."""
    entries: dict[str, Any] = {}
    for file in files:
        entries |= json.loads(file.read_text(encoding="utf-8"))
    return entries


def show_command(files: Sequence[Path], options: Mapping[str, Any]) -> str:
    """Return the equivalent command of MONAI, for a shell.

    Example:
        >>> print(show_command([Path("inference.json")], {"input": "a b.nii.gz"}).partition("--config_file")[2])
         inference.json --input 'a b.nii.gz'
    """
    names = [str(file) for file in files]
    words = ["python", "-m", "monai.bundle", "run_workflow", "--workflow_name", "monai_attn.run.Workflow"]
    given = {"config_file": names[0] if len(names) == 1 else names, **options}
    for key, value in given.items():
        text = "$None" if value is None else str(value)  # MONAI drops None
        readable = "'" in text and not set(text) & set('"$`\\!')
        words += [f"--{key}", f'"{text}"' if readable else shlex.quote(text)]
    return " ".join(words)


def own_weights(folder: Path, checkpoint: str | Path | None) -> str:
    """Return the weights that are given, or the bundle's own.

    Raises:
        ConfigError: if the bundle has none of its own.
        DataError: if there is no such file.
    """
    path = Path(checkpoint) if checkpoint else folder / "models" / "model.pt"
    if path.is_file():
        return str(path)
    if checkpoint:
        raise DataError(str(checkpoint), "there is no such file", "give weights that a training has written, model.pt")
    raise ConfigError(folder.name, "it comes without weights", "give those of your training: --checkpoint FILE")


def table() -> list[str]:
    """Return the lines of a table of the bundles."""
    rows = [("bundle", "paper", "segments", "modality", "weights", "data")]
    for name, folder in named_bundles().items():
        about = json.loads((folder / "configs" / "metadata.json").read_text(encoding="utf-8"))
        score = about["eval_metrics"].get("mean_dice")
        weights = f"Dice {score}" if score and (folder / "models" / "model.pt").is_file() else "none"
        paper = re.split(r"[,.]", about["references"][0])[0] + " " + about["name"].split()[-1]
        task = re.sub(r"^Segmentation of (the )?", "", about["task"]).split(" in ")[0]
        modality = about["network_data_format"]["inputs"]["image"]["modality"]
        rows.append((name, paper, task, modality, weights, re.split(r",| \(|;", about["data_source"])[0]))
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in rows]


def describe(folder: Path, checkpoint: str | Path | None = None) -> list[str]:
    """Return the lines of a bundle's card, with its options.

    A ``model.json`` beside the weights adds the options and scores of their training.
    """
    card = (folder / "docs" / "README.md").read_text(encoding="utf-8")
    card = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", card)  # links as text
    sections = dict(re.findall(r"^##+ (.*?)\n+(.*?)(?=\n##+ |\Z)", card, flags=re.MULTILINE | re.DOTALL))
    lines = [f"{folder.name}: {card.splitlines()[0].lstrip('# ')}", f"folder: {folder}", ""]
    for title in ("Model Overview", "Data", "Input", "Output", "Weights"):
        lines += [title, textwrap.indent(sections.get(title, "").strip(), "  "), ""]
    lines.append("Options, with their defaults")
    table = sections.get("Overrides", "")
    for keys, default, meaning in re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", table, re.MULTILINE):
        text = f"{keys.replace('`', '')} ({default.replace('`', '')}): {meaning.replace('`', '')}"
        lines += textwrap.wrap(text, 110, initial_indent="  --", subsequent_indent="      ")
    weights = Path(checkpoint or folder / "models" / "model.pt")
    model = json.loads(path.read_text("utf-8")) if (path := weights.with_name("model.json")).is_file() else {}
    lines += ["", f"The training of {weights}"] * bool(model)
    return lines + [f"  {key}: {json.dumps(value, ensure_ascii=False)}" for key, value in model.items()]


def data_sets() -> str:
    """Return the data sets of the bundles as lines of a help text."""
    table = json.loads((Path(__file__).parents[1] / "data/sources.json").read_text(encoding="utf-8"))
    names = {key: [found] if isinstance(found, str) else [s["name"] for s in found] for key, found in table.items()}
    return "\ndata sets:\n" + "".join(f"  {key}: {' or '.join(texts)}\n" for key, texts in names.items())
