# SPDX-License-Identifier: Apache-2.0
import csv
import json
from pathlib import Path

import pytest
import torch

from monai_attn.cli import main
from monai_attn.data.datalist import case_name, cases
from monai_attn.run.workflow import read_bundle
from monai_attn.weights.checkpoint import load_weights

from ..conftest import BUNDLES as ROOTS
from ..conftest import read_csv

BUNDLES = Path(__file__).parents[2] / "bundles"
SPLITS = BUNDLES.parent / "docs" / "reproduce" / "splits"
# the zoo has a list of the same kind for its check of preferred files
WITHOUT_WEIGHTS = {
    "brain_mri_scse_segmentation", "brats_mri_autofocus_segmentation", "brats_mri_egcnn_segmentation",
    "kits_ct_egcnn_segmentation", "lung_ct_focusnet_segmentation", "pelvic_ct_autofocus_segmentation",
    "retinal_oct_scse_segmentation", "whole_body_ct_scse_segmentation",
}  # fmt: skip
# data set, its split in docs/reproduce/splits, if it is not the bundle's own, and the section of the scores
WITH_WEIGHTS = {
    "hippocampus_mri_scse_segmentation": ("hippocampus", None, "validation"),
    "hippocampus_mri_egcnn_segmentation": ("hippocampus", "hippocampus", "test"),
    "skin_lesion_focusnet_segmentation": ("isic2017", "isic2017", "test"),
}


def test_every_bundle_says_whether_it_has_weights():
    assert {root.name for root in ROOTS} == WITHOUT_WEIGHTS | WITH_WEIGHTS.keys()


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_the_weights_are_a_small_state_dict_of_the_network(name):
    path = BUNDLES / name / "models" / "model.pt"
    assert path.stat().st_size < 25e6  # what the zoo takes without a link
    parser = read_bundle(BUNDLES / name, ["inference"], {})  # with the options of model.json
    load_weights(parser.get_parsed_content("network_def"), path)
    assert all(isinstance(value, torch.Tensor) for value in torch.load(path, weights_only=True).values())


@pytest.mark.parametrize("name", sorted(WITHOUT_WEIGHTS))
def test_a_card_without_weights_tells_how_to_get_them(name):
    card = (BUNDLES / name / "docs" / "README.md").read_text(encoding="utf-8")
    assert "## Weights\n\nNone come with this bundle. The training command below writes them" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_the_weights_reach_the_scores_of_the_metadata(name, real_data, tmp_path):
    data_set, split, section = WITH_WEIGHTS[name]
    data = folder = real_data(data_set)
    if split:
        names = json.loads((SPLITS / f"{split}.json").read_text())[0][section]
        every = [*cases(data, "training"), *cases(data, "validation")]
        listed = [case for case in every if case_name(case["image"]) in names]
        assert len(listed) == len(names)
        (folder := tmp_path / "data").mkdir()
        (folder / "dataset.json").write_text(json.dumps({"training": listed[:1], section: listed}))
    words = ["-d", str(folder), "-o", str(tmp_path), "--section", section, "--device", "cpu"]
    assert main(["evaluate", name, *words]) == 0
    promised = json.loads((BUNDLES / name / "configs" / "metadata.json").read_text())["eval_metrics"]
    with (tmp_path / "metrics.csv").open(encoding="utf-8") as file:
        found = dict(csv.reader(file))
    keys = {"val_mean_dice": "mean_dice", "val_dice": "mean_dice", "val_jaccard": "mean_jaccard"}
    shared = found.keys() & keys.keys()
    assert shared
    for metric in shared:
        assert float(found[metric]) == pytest.approx(promised[keys[metric]], abs=1e-3)
    for structure in ("anterior", "posterior"):
        if f"dice_{structure}" in promised:
            by_class = {row["class"]: float(row["mean"]) for row in read_csv(tmp_path / "val_mean_dice_summary.csv")}
            assert by_class[structure] == pytest.approx(promised[f"dice_{structure}"], abs=1e-3)
