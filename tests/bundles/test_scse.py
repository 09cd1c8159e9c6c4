# SPDX-License-Identifier: Apache-2.0
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import run
from PIL import Image

from monai_attn.data import cases

QUICK_START, OCT = "hippocampus_mri_scse_segmentation", "retinal_oct_scse_segmentation"


@pytest.mark.parametrize("name", [QUICK_START, OCT])
def test_optimizer_schedule_and_the_plain_network_are_one_override_each(train_bundle, name, tmp_path):
    overrides = {"optimizer": "@sgd", "lr_scheduler": "@step", "se": "$None"}
    train_bundle(name).run("train", "baselines", output_dir=str(tmp_path), ckpt_dir=str(tmp_path), **overrides)
    state = torch.load(tmp_path / "model_final.pt", weights_only=True)
    assert not [key for key in state if "_se" in key]


def test_relaynet_sees_pictures_as_rows_and_columns(train_bundle, tmp_path):
    bundle = train_bundle(OCT)
    case = cases(bundle.data, "validation")[0]["image"]
    bundle.run("inference", input=case, checkpoint=str(bundle.weights), output_dir=str(tmp_path))
    pixels = np.asarray(Image.open(case))  # (height, width)
    network = bundle.parsed("inference").get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle.weights, weights_only=True))
    with torch.no_grad():
        logits = network(torch.as_tensor(pixels / 255.0, dtype=torch.float32)[None, None])
    result = np.asarray(Image.open(tmp_path / f"{Path(case).stem}_seg.png"))
    assert np.array_equal(result, logits[0].argmax(dim=0).numpy())


def test_the_file_of_the_readme_keeps_the_maps_of_every_epoch_and_changes_no_weight(train_bundle, tmp_path):
    bundle = train_bundle(QUICK_START)
    (line,) = re.findall(r"```json\n(.*?)```", (bundle.root / "docs" / "README.md").read_text(), flags=re.DOTALL)
    (tmp_path / "every_epoch.json").write_text(line)
    options = {"dataset_dir": str(bundle.data), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    files = [*bundle.config("train"), str(tmp_path / "every_epoch.json")]
    run(config_file=files, bundle_root=str(bundle.root), device="cpu", **bundle.small("train"), **options)
    saved = np.load(tmp_path / "attention" / "epoch_0001.npz")
    maps = {name.split("/")[-1] for name in saved if name.startswith("map/")}
    assert {"encoder_se.0.spatial", "decoder_se.2.spatial"} <= maps
    with_it, without = (torch.load(folder / "model_final.pt") for folder in (tmp_path, bundle.output))
    assert all(torch.equal(with_it[name], without[name]) for name in without)
