# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ckpt_export
from monai.transforms import LoadImage
from monai.utils import ensure_tuple
from torch import nn
from torch.export import Dim

from monai_attn.data import case_name, cases
from monai_attn.errors import ConfigError, DataError, root_cause
from monai_attn.run.api import export

from ..conftest import TrainedBundle
from .conftest import mostly_slow


def command(bundle: TrainedBundle) -> dict:
    return {
        "net_id": "network_def",
        "ckpt_file": str(bundle.weights),
        "meta_file": str(bundle.root / "configs" / "metadata.json"),
        "config_file": bundle.config("inference"),
        **bundle.small("inference"),
    }


def eager(bundle: TrainedBundle) -> nn.Module:
    network = bundle.parsed("inference").get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle.weights, weights_only=True))
    return network


def image_of(bundle: TrainedBundle, batch: int, size: int) -> torch.Tensor:
    metadata = json.loads((bundle.root / "configs" / "metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    return torch.rand(batch, image["num_channels"], *[size] * len(image["spatial_shape"]))


@pytest.fixture
def torchscript(trained, tmp_path) -> Path:
    ckpt_export(filepath=str(tmp_path / "model.ts"), **command(trained))
    return tmp_path / "model.ts"


@mostly_slow
def test_the_network_in_torchscript_is_the_network_for_images_of_any_size(trained, torchscript):
    network, scripted = eager(trained), torch.jit.load(torchscript)
    with torch.no_grad():
        for image in (image_of(trained, 1, 32), image_of(trained, 2, 64)):
            torch.testing.assert_close(scripted(image), network(image))


@pytest.mark.slow
def test_the_network_in_onnx_is_the_network_for_images_of_any_size(trained, tmp_path):
    network = eager(trained)
    export(trained.root, tmp_path / "model.onnx", checkpoint=trained.weights, **trained.small("inference"))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for image in (image_of(trained, 1, 32), image_of(trained, 3, 48)):
        (found,) = session.run(["pred"], {"image": image.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.as_tensor(found), network(image), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_network_of_torch_export_is_the_network_for_images_of_any_size(trained, tmp_path):
    network, image = eager(trained), image_of(trained, 2, 32)
    with torch.no_grad():
        program = torch.export.export(network, (image,), dynamic_shapes=(dict.fromkeys(range(image.ndim), Dim.AUTO),))
        torch.export.save(program, tmp_path / "model.pt2")
        exported = torch.export.load(tmp_path / "model.pt2").module()
        for other in (image, image_of(trained, 3, 64)):
            torch.testing.assert_close(exported(other), network(other))


@pytest.mark.fault(94)
@mostly_slow
def test_the_exported_network_segments_as_the_network_does(trained, torchscript, tmp_path):
    """It has its weights, and needs no other file of them; its results are its own when they are looked for again."""
    image = cases(trained.data, "validation")[0]["image"]
    same = {"input": image, "bf16": False}  # which rounds where the sums are formed
    trained.run("inference", output_dir=str(tmp_path / "own"), checkpoint=str(trained.weights), **same)
    exported = {"network_def": f"$torch.jit.load('{torchscript.as_posix()}')", "checkpoint": "none.pt", **same}
    name = f"{case_name(ensure_tuple(image)[0])}_seg{trained.suffix}"
    for _again in range(2):
        trained.run("inference", output_dir=str(tmp_path / "exported"), **exported)
    own, found = (np.asarray(LoadImage(image_only=True)(tmp_path / folder / name)) for folder in ("own", "exported"))
    assert np.array_equal(own, found)
    manifest = json.loads((tmp_path / "exported" / "inference_run.json").read_text())
    assert (manifest["weights"], manifest["cases"]["finished before"]) == ({}, 1)


def test_an_exported_network_is_asked_for_by_name_and_has_no_attention_to_save(train_bundle, tmp_path):
    bundle = train_bundle("hippocampus_mri_scse_segmentation")
    ckpt_export(filepath=str(tmp_path / "model.ts"), **command(bundle))
    load = {"network_def": f"$torch.jit.load('{(tmp_path / 'model.ts').as_posix()}')", "save_attention": True}
    for options, kind, words in (({}, DataError, "--network_def"), (load, ConfigError, "show its gates")):
        with pytest.raises(RuntimeError) as caught:
            bundle.run("inference", checkpoint=str(tmp_path / "model.ts"), output_dir=str(tmp_path), **options)
        assert isinstance(error := root_cause(caught.value), kind)
        assert words in str(error)
