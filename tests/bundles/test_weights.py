# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, run

from monai_attn.weights.checkpoint import load_weights

from ..conftest import BUNDLES as ROOTS
from ..conftest import read_csv

BUNDLES = Path(__file__).parents[2] / "bundles"
# the zoo has a list of the same kind for its check of preferred files
WITHOUT_WEIGHTS = {
    "brain_mri_scse_segmentation", "brats_mri_autofocus_segmentation", "brats_mri_egcnn_segmentation",
    "kits_ct_egcnn_segmentation", "lung_ct_focusnet_segmentation", "pelvic_ct_autofocus_segmentation",
    "retinal_oct_scse_segmentation", "skin_lesion_focusnet_segmentation", "whole_body_ct_scse_segmentation",
}  # fmt: skip
WITH_WEIGHTS = sorted({root.name for root in ROOTS} - WITHOUT_WEIGHTS)


@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_the_weights_are_a_small_state_dict_of_the_network(name):
    path = BUNDLES / name / "models" / "model.pt"
    assert path.stat().st_size < 25e6  # what the zoo takes without a link
    parser = ConfigParser()
    parser.read_config(str(BUNDLES / name / "configs" / "inference.json"))
    load_weights(parser.get_parsed_content("network_def"), path)
    assert all(isinstance(value, torch.Tensor) for value in torch.load(path, weights_only=True).values())


@pytest.mark.parametrize("name", sorted(WITHOUT_WEIGHTS))
def test_a_card_without_weights_tells_how_to_get_them(name):
    card = (BUNDLES / name / "docs" / "README.md").read_text(encoding="utf-8")
    assert "## Weights\n\nNone come with this bundle. The training command below writes them" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_WEIGHTS)
def test_the_weights_reach_the_dice_of_the_metadata(name, real_data, tmp_path):
    root = BUNDLES / name
    promised = json.loads((root / "configs" / "metadata.json").read_text())["eval_metrics"]
    places = {"bundle_root": root, "dataset_dir": real_data("hippocampus"), "output_dir": tmp_path}
    files = [str(root / "configs" / f"{config}.json") for config in ("train", "evaluate")]
    run(config_file=files, device="cpu", **{key: str(path) for key, path in places.items()})
    found = {row["class"]: float(row["mean"]) for row in read_csv(tmp_path / "val_mean_dice_summary.csv")}
    assert found["mean"] == pytest.approx(promised["mean_dice"], abs=1e-3)
    for structure in ("anterior", "posterior"):
        assert found[structure] == pytest.approx(promised[f"dice_{structure}"], abs=1e-3)
