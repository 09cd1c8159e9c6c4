# SPDX-License-Identifier: Apache-2.0
"""The sizes of the house and who may import whom: a promise to everybody who has to carry a line of it."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "monai_attn").rglob("*.py"))
CODE_LINES, LINES, TEST_LINES = 7729, 13_135, 19_231
LOWEST = {"errors", "files"}
MIDDLE = LOWEST | {
    "blocks",
    "data",
    "transforms",
    "losses",
    "adapt",
    "nets",
    "metrics",
    "inferers",
    "visualize",
    "weights",
}
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "blocks": {"errors"},
    "data": LOWEST,
    "transforms": LOWEST | {"blocks", "data"},
    "losses": {"errors", "blocks", "transforms"},
    "adapt": {"errors", "blocks"},
    "nets": {"errors", "blocks", "adapt"},
    "metrics": {"errors", "blocks"},
    "inferers": {"errors", "blocks"},
    "visualize": LOWEST | {"blocks"},
    "weights": LOWEST | {"nets"},
    "handlers": MIDDLE,
    "run": MIDDLE | {"handlers", "__init__"},
    "cli": MIDDLE | {"handlers", "run", "__init__"},
    "__main__": {"cli"},
    "__init__": set(),
}  # fmt: skip
NOT_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
}  # fmt: skip


def code_lines(text: str) -> set[int]:
    """The lines that are not blank, comment or docstring."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in NOT_CODE]
    return {line for token in tokens for line in range(token.start[0], token.end[0] + 1)} - documented


def room(path: Path) -> str:
    return path.relative_to(ROOT / "monai_attn").parts[0].removesuffix(".py")


def test_the_package_and_its_tests_stay_within_the_budget():
    texts = [path.read_text(encoding="utf-8") for path in FILES]
    assert len(FILES) <= 75
    assert sum(len(code_lines(text)) for text in texts) <= CODE_LINES
    assert sum(len(text.splitlines()) for text in texts) <= LINES
    assert (
        sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / "tests").rglob("*.py")) <= TEST_LINES
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_a_class_and_a_forward_can_be_read_at_once(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert len(text.splitlines()) >= 30 or path.stem in ("__init__", "__main__")
    lines = code_lines(text)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) or getattr(node, "name", "") == "forward":
            size = len(lines & set(range(node.lineno, node.end_lineno + 1)))
            assert size <= (100 if isinstance(node, ast.ClassDef) else 18), node.name
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and room(path) in ("blocks", "nets", "losses"):
            arguments = len(node.args.args) + len(node.args.kwonlyargs) - 1
            assert arguments <= (10 if room(path) == "blocks" else 14), path


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_is_below_it(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "monai_attn":
            names = [f"monai_attn.{alias.name}" for alias in node.names]
        imported |= {[*name.split("."), "__init__"][1] for name in names if name.split(".")[0] == "monai_attn"}
    assert imported - {room(path)} <= MAY_IMPORT[room(path)]


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("bundles/*/configs/*.json")), ids=lambda path: "/".join(path.parts[-3::2])
)
def test_a_configuration_can_be_read_at_once(path):
    limit = {"train": 300, "inference": 180}.get(path.stem, 300)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit
