# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows must run as it is shown."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import monai_attn

ROOT = Path(__file__).parents[1]
MODULES = [module.name for module in pkgutil.walk_packages(monai_attn.__path__, "monai_attn.")]
MODULES = [name for name in MODULES if not name.endswith("__main__")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_show(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_public_class_and_function_of_a_module_is_documented():
    undocumented = []
    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", []):
            thing = getattr(module, public)
            if callable(thing) and not thing.__doc__:
                undocumented.append(f"{name}.{public}")
    assert undocumented == []


def test_the_python_of_the_readme_runs():
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(code) == 2
    exec("\n".join(code), {})


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda path: path.stem)
def test_the_python_of_a_page_runs(page):
    exec("\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)), {})


@pytest.mark.parametrize(
    "document", sorted(ROOT.glob("bundles/*/docs/README.md")), ids=lambda path: path.parents[1].name
)
def test_a_model_card_names_files_and_entries_that_exist(document):
    bundle = document.parents[1]
    text = document.read_text()
    for path in set(re.findall(r"\$BUNDLE/([\w/]+\.json)", text)):
        assert (bundle / path).is_file(), path
    known = {key for name in ("train", "evaluate", "inference") for key in _top_level(bundle, name)}
    table = text[text.index("### Overrides") :]
    for line in re.findall(r"^\| (`[^|]*) \|", table, flags=re.MULTILINE):
        for key in re.findall(r"`([\w#]+)`", line):
            assert key.split("#")[0] in known, key
    for heading in ("Model Overview", "Data", "Preprocessing", "Performance", "MONAI Bundle Commands", "References"):
        assert f"## {heading}" in text


def _top_level(bundle: Path, name: str) -> set[str]:
    return {key.split("#")[0] for key in json.loads((bundle / "configs" / f"{name}.json").read_text())}


def test_the_first_command_of_the_readme_is_near_its_top():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert next(number for number, line in enumerate(lines, 1) if line.startswith("make demo")) <= 15
    assert next(number for number, line in enumerate(lines, 1) if line.startswith("![")) <= 12


def test_the_first_screen_of_the_readme_has_the_papers_and_a_block_in_a_network():
    screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:40])
    papers = ("scSE", "FocusNet", "Autofocus", "EG-CNN")
    assert all(re.search(rf"^\| \[{paper}\]", screen, flags=re.MULTILINE) for paper in papers)
    assert "network = recalibrate(" in screen
