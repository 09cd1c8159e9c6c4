# SPDX-License-Identifier: Apache-2.0
"""What the configurations of the bundles may evaluate: MONAI runs every ``$`` expression and calls every target."""

from __future__ import annotations

import ast
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BUNDLES = sorted(path.parent.parent for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json"))
FILES = sorted(path for bundle in BUNDLES for path in (bundle / "configs").glob("*.json"))

# the reviewed list: to add to it is to vouch for it
IMPORTS = {
    "import sys",
    "import torch",
    "from monai_attn import run",
    "from ignite import distributed as idist",
    "from monai_attn.data import datalist",
}
NAMES = {"bool", "case", "datalist", "idist", "index", "len", "min", "monai", "range", "run", "size", "sys", "torch"}
ATTRIBUTES = {
    "cuda", "device", "float32", "is_available", "uint8",  # torch
    "isatty", "stderr",  # sys
    "cases", "find_images", "locate", "training_cases",  # datalist
    "from_engine", "handlers", "set_determinism", "utils",  # monai
    "auto_model",  # ignite
    "check_settings", "finish", "handlers_of_rank", "share", "start",  # run
    "parameters", "run", "to",  # of what the configuration itself makes
}  # fmt: skip
SYNTAX = (
    ast.Expression, ast.Constant, ast.Load, ast.Store, ast.List, ast.ListComp, ast.comprehension, ast.Call, ast.keyword,
    ast.Starred, ast.Subscript, ast.BinOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.UnaryOp,
    ast.operator, ast.boolop, ast.cmpop, ast.unaryop,
)  # fmt: skip


def strings(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        for key, value in config.items():
            yield from strings(key)
            yield from strings(value)
    elif isinstance(config, list):
        for value in config:
            yield from strings(value)
    elif isinstance(config, str):
        yield config


def targets(config: Any) -> Iterator[str]:
    if isinstance(config, dict):
        if "_target_" in config:
            yield config["_target_"]
        for value in config.values():
            yield from targets(value)
    elif isinstance(config, list):
        for value in config:
            yield from targets(value)


def not_reviewed(expression: str) -> list[str]:
    """The parts of a ``$`` expression that are not on the list."""
    code = expression.removeprefix("$")
    if code.startswith(("import ", "from ")):
        return [] if code in IMPORTS else [code]
    tree = ast.parse(re.sub(r"@[\w#]+", "_reference", code), mode="eval")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found += [] if node.id in {*NAMES, "_reference"} else [node.id]
        elif isinstance(node, ast.Attribute):
            found += [] if node.attr in ATTRIBUTES else [node.attr]
        elif not isinstance(node, SYNTAX):
            found.append(type(node).__name__)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parents[1].name}/{path.name}")
def test_every_expression_and_target_of_a_configuration_is_reviewed(path):
    config = json.loads(path.read_text())
    for text in strings(config):
        if text.startswith("$"):
            assert not_reviewed(text) == [], text
    for target in targets(config):
        if "." in target:  # a short name is one of MONAI's
            assert target.split(".")[0] in {"monai", "monai_attn", "torch", "ignite"}


@pytest.mark.parametrize(
    "expression",
    [
        "$import os",
        "$from monai_attn.data import datalist; import os",
        "$__import__('os').system('true')",
        "$open('/etc/passwd').read()",
        "$eval('1')",
        "$().__class__.__base__.__subclasses__()",
        "$torch.hub.load('evil/repo', 'model')",
        "$torch.load('evil.pt', weights_only=False)",
        "$monai.bundle.run()",
        "$@train#trainer.state",
        "$(lambda: 1)()",
        "$f'{torch}'",
        "$[x for x in torch.classes]",
    ],
)
def test_an_evil_expression_would_be_found(expression):
    assert not_reviewed(expression)


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)
def test_the_logging_file_is_the_stock_one(bundle):
    first = (BUNDLES[0] / "configs" / "logging.conf").read_text()
    text = (bundle / "configs" / "logging.conf").read_text()
    assert text == first
    assert re.findall(r"^(?:class|args|kwargs)=(.*)$", text, flags=re.MULTILINE) == ["StreamHandler", "(sys.stdout,)"]


def test_a_bundle_runs_without_a_network(train_bundle, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"the network is used: {args}")

    bundle = train_bundle("hippocampus_mri_scse_segmentation")
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    bundle.run("train", output_dir=str(tmp_path), ckpt_dir=str(tmp_path))
    bundle.run("inference", checkpoint=str(tmp_path / "model.pt"), output_dir=str(tmp_path))
    assert list(tmp_path.glob("*_seg.nii.gz"))
