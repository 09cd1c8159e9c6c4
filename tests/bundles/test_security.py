# SPDX-License-Identifier: Apache-2.0
import ast
import json
import re
import socket

import pytest

from ..conftest import BUNDLES
from .conftest import strings

FILES = sorted(path for bundle in BUNDLES for path in (bundle / "configs").glob("*.json"))
IMPORTED = r"\$import sys|\$from monai_attn import (inferers|run)|\$from monai_attn\.data import datalist"
IMPORTED += r"|\$from ignite import distributed as idist"
# to add to these is to vouch for them
NAMES = {"bool", "datalist", "enumerate", "idist", "inferers", "len", "min", "monai", "range", "run", "sys", "torch"}
NAMES |= {"_entry", "case", "i", "level", "name", "region", "side", "size", "value", "width"}
FORBIDDEN = {"bundle", "hub", "jit", "load", "modules", "package", "save", "serialization"}


def is_harmless(expression: str) -> bool:
    if expression.startswith(("$import ", "$from ")):
        return re.fullmatch(IMPORTED, expression) is not None
    nodes = list(ast.walk(ast.parse(re.sub(r"@[\w#]+", "_entry", expression[1:]), mode="eval")))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    strange = [node for node in nodes if isinstance(node, (ast.Lambda, ast.JoinedStr, ast.NamedExpr))]
    return names <= NAMES and not (attributes & FORBIDDEN or strange or any(name[0] == "_" for name in attributes))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parents[1].name}/{path.name}")
def test_every_expression_is_harmless_and_every_target_known(path):
    config = json.loads(path.read_text())
    assert [text for text in strings(config) if text.startswith("$") and not is_harmless(text)] == []
    targets = re.findall(r'"_target_": "(\w+)\.', path.read_text())  # a short name is one of MONAI's
    assert set(targets) <= {"monai", "monai_attn", "torch", "ignite"}


@pytest.mark.parametrize(
    "expression",
    [
        "$from monai_attn.data import datalist; import os",
        "$__import__('os').system('true')",
        "$().__class__.__base__.__subclasses__()",
        "$torch.hub.load('evil/repo', 'model')",
        "$(lambda: 1)()",
        "$sys.modules['os']",
    ],
)
def test_an_evil_expression_would_be_found(expression):
    assert not is_harmless(expression)


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
