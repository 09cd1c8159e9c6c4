# SPDX-License-Identifier: Apache-2.0
"""The documentation as a whole: nothing is missing, no link is broken, and it can be built."""

import doctest
import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import monai_attn

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BUNDLES = sorted(path.parent for path in ROOT.glob("bundles/*/configs"))
PAGES = [*ROOT.glob("*.md"), *(bundle / "docs" / "README.md" for bundle in BUNDLES)]
PAGES += [path for path in DOCS.rglob("*") if path.suffix in (".md", ".ipynb") and "_build" not in path.parts]
MODULES = set(re.findall(r"automodule:: ([\w.]+)", "".join(page.read_text() for page in DOCS.glob("api/*.md"))))


def text_of(page: Path) -> str:
    """Return a page's Markdown without its code."""
    text = page.read_text()
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    found = []
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text_of(page)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


def test_links_to_files_and_their_sections_lead_somewhere():
    assert {str(page): links for page in PAGES if (links := broken_links(page))} == {}


def test_a_link_to_nothing_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# Top\n[a](page.md#top) [b](#no) [c](no.md) [d](https://example.org) `[e](no.md)`\n")
    assert broken_links(page) == ["#no", "no.md"]


def test_every_bundle_has_its_card_on_the_site():
    assert {path.stem for path in DOCS.glob("cards/*.md")} == {"index", *(bundle.name for bundle in BUNDLES)}


def test_every_public_name_is_on_a_page_of_the_api_with_an_example():
    own = {module.name for module in pkgutil.iter_modules(monai_attn.__path__)} - {"__main__", "files"}
    assert {f"monai_attn.{name}" for name in own} <= MODULES
    page = (DOCS / "api" / "index.md").read_text()
    assert all(f"autofunction:: monai_attn.{name}\n" in page for name in monai_attn._FUNCTIONS)
    without = []
    for name in sorted(MODULES):
        module = importlib.import_module(name)
        for public in module.__all__:
            thing = getattr(module, public)
            if callable(thing) and "Example:" not in (thing.__doc__ or ""):
                without.append(f"{name}.{public}")
    assert without == []


@pytest.fixture
def extension(monkeypatch):
    """Imports a module of the site's own."""
    monkeypatch.syspath_prepend(str(DOCS / "_extensions"))
    return importlib.import_module


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_table_of_entries_has_all_that_the_card_explains_with_the_defaults_of_the_configuration(bundle, extension):
    keys = extension("bundle_keys")
    rows = dict(re.findall(r"^\| (`.*?) \| (.*?) \|", keys.tables(bundle), flags=re.MULTILINE))
    explained = {", ".join(f"`{name}`" for name in names) for names in keys.documented(bundle)}
    assert explained <= set(rows)
    assert [entry for entry, default in rows.items() if not default.strip(", ")] == []
    seed = json.loads((bundle / "configs" / "train.json").read_text())["seed"]
    assert any(entry.endswith("`seed`") and default.endswith(f"`{seed}`") for entry, default in rows.items())


def test_links_of_the_repository_are_made_those_of_the_site(extension):
    assert doctest.testmod(extension("links")).failed == 0


def test_the_help_of_every_command_is_shown(extension):
    texts = extension("command_help").help_texts()
    assert {"monai-attn", "monai-attn check", "monai-attn phantom"} <= set(texts)
    assert all("examples:" in text and "exit codes:" in text for text in texts.values())


@pytest.mark.slow  # minutes: it draws every page
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
    public = {f"{name}.{thing}" for name in MODULES for thing in importlib.import_module(name).__all__}
    aliases = {name for name in public if re.fullmatch(r"monai_attn\.transforms\.\w+(D|Dict)", name)}  # shown as …d
    assert public - aliases - shown == set()
