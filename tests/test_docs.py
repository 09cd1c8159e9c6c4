# SPDX-License-Identifier: Apache-2.0
"""What the documentation shows must run as it is shown."""

import doctest
import importlib
import json
import pkgutil
import re
import shutil
from pathlib import Path

import pytest
import torch

import monai_attn
from monai_attn.data import cases

ROOT = Path(__file__).parents[1]
MODULES = [module.name for module in pkgutil.walk_packages(monai_attn.__path__, "monai_attn.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_in_docstrings_give_what_they_show(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


# which part of its paper a module or class is
REFERENCES = {
    "blocks.ChannelSE": "Fig. 1a, eqs. 1 and 2", "blocks.SpatialSE": "Fig. 1b, eq. 3",
    "blocks.ChannelSpatialSE": "Fig. 1c, eqs. 4 to 7", "nets.scse.fcn": "Fig. 2, Sec. II-D and III-B, Table IV",
    "nets.scse.presets": "Sec. III-B and IV-G, Tables I, VI, VII", "adapt.recalibrate": "Sec. II-D and Table IV",
    "losses.class_balance": "Sec. III-B", "nets.focusnet": "Fig. 1, eqs. 1 to 3",
    "blocks.autofocus": "Fig. 1, Sec. 2.2, eqs. 2 and 3", "nets.afnet": "Sec. 2.3, Fig. 2",
    "blocks.gate": "arXiv 2020, https://arxiv.org/abs/2002.04207, Sec. 2.2, eqs. 1 and 2",
    "nets.egcnn": "arXiv 2020, https://arxiv.org/abs/2002.04207, after the text of Sec. 2.1",
    "losses.EGCNNLoss": "(eq. 3)",
    "losses.EdgeLoss": "(eq. 5)", "losses.BalancedBCELoss": "(eq. 6)", "losses.EdgeConsistencyLoss": "(eqs. 7, 8)",
    "transforms.edges": "2002.04207, Sec. 2.1",
}  # fmt: skip


def test_docstrings_refer_to_the_right_parts_of_the_papers():
    documents = {name: pkgutil.resolve_name(f"monai_attn.{name}").__doc__ for name in REFERENCES}
    assert [name for name, place in REFERENCES.items() if place not in documents[name]] == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda path: path.stem)
def test_the_python_of_a_page_runs(page, phantom, tmp_path, monkeypatch):
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
    if "my_scan.nii.gz" in code:
        shutil.copy(cases(phantom("hippocampus_mri_scse_segmentation"))[0]["image"], tmp_path / "my_scan.nii.gz")
        monkeypatch.chdir(tmp_path)
    exec(code, {})


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("docs/notebooks/*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_keeps_the_outputs_of_real_data(notebook, monkeypatch):
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))  # make notebooks
    kept = json.dumps([cell["outputs"] for cell in cells])
    assert "image/png" in kept
    assert re.findall(r"stderr|Warning|made-up|/tmp/|/home/|\d{4}-\d\d-\d\d", kept) == []
    assert notebook.stat().st_size < 400_000
    monkeypatch.chdir(notebook.parent)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.delenv("MONAI_DATA_DIRECTORY", raising=False)
    lines = [re.sub(r"^(\s*)%.*", r"\1pass", line) for cell in cells for line in [*cell["source"], "\n"]]
    code = re.sub(r"\b(iterations|epochs|val_interval)=\d+", r"\1=1", "".join(lines))
    exec(compile(code, str(notebook), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("card", sorted(ROOT.glob("bundles/*/docs/README.md")), ids=lambda path: path.parents[1].name)
def test_a_model_card_has_the_sections_of_the_model_zoo(card):
    for heading in ("Model Overview", "Data", "Preprocessing", "Performance", "MONAI Bundle Commands", "References"):
        assert f"## {heading}" in card.read_text()


def test_the_first_screen_of_the_readme_has_a_picture_a_command_the_papers_and_a_block_in_a_network():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any(line.startswith("![") for line in lines[:12])
    assert any(line.startswith("monai-attn segment") for line in lines[:16])
    screen = "\n".join(lines[:45])
    assert all(f"\n| [{paper}]" in screen for paper in ("scSE", "FocusNet", "Autofocus", "EG-CNN"))
    assert "network = recalibrate(" in screen
