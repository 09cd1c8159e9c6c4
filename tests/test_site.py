# SPDX-License-Identifier: Apache-2.0
"""The documentation as a whole: nothing is missing, no link is broken, the notebooks run, and it can be built."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import monai_attn

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts) + NOTEBOOKS
README = sorted([*ROOT.glob("*.md"), *ROOT.glob("bundles/*/docs/README.md")])
OF_PROGRAMS = {"__main__", "files"}  # no user calls these


def text_of(page: Path) -> str:
    """A page's Markdown without its code."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```(?!\{toctree).*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def extension():
    """Imports a module of the site's own."""

    def load(name: str):
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str(DOCS / "_extensions"))
            return importlib.import_module(name)

    return load


def test_every_page_is_in_a_table_of_contents():
    listed = {DOCS / "index.md"}
    for page in PAGES:
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for entry in re.findall(r"^[\w/]+$", block, flags=re.MULTILINE):
                target = page.parent / entry
                listed |= {target.with_suffix(".md"), target.with_suffix(".ipynb")}
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in listed] == []
    cards = {path.stem for path in DOCS.glob("cards/*.md")} - {"index"}
    assert cards == {path.parents[1].name for path in ROOT.glob("bundles/*/docs/README.md")}


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *README], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_and_their_sections_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = link.partition("#")
        if re.match(r"\w+:", link):
            continue
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def documented_modules() -> set[str]:
    return set(re.findall(r"automodule:: ([\w.]+)", "".join(page.read_text() for page in DOCS.glob("api/*.md"))))


def test_every_public_name_is_on_a_page_of_the_api_with_an_example():
    shown = documented_modules()
    own = {module.name for module in pkgutil.iter_modules(monai_attn.__path__)} - OF_PROGRAMS
    assert {f"monai_attn.{name}" for name in own} - shown == set()
    without = []
    for name in sorted(shown):
        module = importlib.import_module(name)
        for public in module.__all__:
            thing = getattr(module, public)
            thing = thing.func if isinstance(thing, partial) else thing  # afn1 to afn6
            if callable(thing) and not re.search(r"^\s*Example:", thing.__doc__ or "", flags=re.MULTILINE):
                without.append(f"{name}.{public}")
    assert without == []


@pytest.mark.parametrize("bundle", sorted(path.parent.name for path in ROOT.glob("bundles/*/configs")))
def test_the_table_of_entries_has_all_that_the_card_explains_with_the_defaults_of_the_configuration(bundle, extension):
    keys = extension("bundle_keys")
    folder = ROOT / "bundles" / bundle
    table = keys.tables(folder)
    rows = {row.split(" | ")[0]: row.split(" | ")[1] for row in table.splitlines() if row.startswith("| `")}
    explained = {f"| {', '.join(f'`{name}`' for name in names)}" for names in keys.documented(folder)}
    assert explained - set(rows) == set()
    assert [entry for entry, default in rows.items() if not default.strip(", ")] == []
    seed = json.loads((folder / "configs" / "train.json").read_text())["seed"]
    assert any(entry.endswith("`seed`") and default.endswith(f"`{seed}`") for entry, default in rows.items())


@pytest.mark.parametrize("name", ["links", "bundle_keys", "command_help"])
def test_examples_of_the_sites_own_code_give_what_they_show(name, extension):
    assert doctest.testmod(extension(name)).failed == 0


def test_the_help_of_every_command_is_shown(extension):
    texts = extension("command_help").help_texts()
    assert {"monai-attn", "monai-attn check", "monai-attn phantom"} <= set(texts)
    assert all("examples:" in text and "exit codes:" in text for text in texts.values())


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_is_kept_without_outputs(notebook, monkeypatch):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    monkeypatch.chdir(notebook.parent)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    lines = [line for cell in cells for line in [*cell["source"], "\n"] if not line.startswith("%")]
    exec(compile("".join(lines), str(notebook), "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_shows_every_public_name(tmp_path):
    pytest.importorskip("myst_nb")
    inventory = importlib.import_module("sphinx.util.inventory").InventoryFile
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", str(tmp_path / "cache")]
    done = subprocess.run([*command, str(DOCS), str(site)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (site / "scse.html").read_text()
    assert "<math" in page
    assert "https://cdn" not in page
    with (site / "objects.inv").open("rb") as file:
        shown = {name for names in inventory.load(file, "", lambda base, path: path).values() for name in names}
    public = {f"{name}.{thing}" for name in documented_modules() for thing in importlib.import_module(name).__all__}
    aliases = {name for name in public if re.fullmatch(r"monai_attn\.transforms\.\w+(D|Dict)", name)}  # shown as …d
    assert public - aliases - shown == set()
