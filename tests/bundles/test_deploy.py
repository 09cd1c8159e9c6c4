# SPDX-License-Identifier: Apache-2.0
"""Bundles in MONAI Deploy's `MonaiBundleInferenceOperator`: by its rules, and by its code with `make test-deploy`."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ckpt_export
from monai.data import MetaTensor
from monai.transforms import LoadImage
from monai.utils import ensure_tuple

from monai_attn.data import case_name, cases
from monai_attn.run.api import run_bundle

from ..conftest import BUNDLES
from .conftest import MARKS, give_weights, held_out, save_volume

FLAT = ("retinal_oct_scse_segmentation", "skin_lesion_focusnet_segmentation")  # the operator returns volumes only


def by_the_rules(model: Any, image: np.ndarray, meta: dict[str, Any], names: list[str]) -> np.ndarray:
    """What the operator promises: no loaders and savers, an image from memory, and a mask in memory."""
    parser = ConfigParser()
    if model.is_dir():
        parser.read_meta(model / "configs" / "metadata.json")
        parser.read_config([model / "configs" / f"{name}.json" for name in names])
    else:
        extra = {f"{name}.json": "" for name in ("metadata", *names)}
        torch.jit.load(model, _extra_files=extra)
        parser.read_meta(json.loads(extra.pop("metadata.json")))
        for text in extra.values():
            parser.update(json.loads(text))
    parser.parse()
    inferer, before, after = (parser.get_parsed_content(n) for n in ("inferer", "preprocessing", "postprocessing"))
    for steps in (before, after):
        steps.transforms = tuple(
            step for step in steps.transforms if not re.search("LoadImage|SaveImage", type(step).__name__)
        )
    if model.is_dir():
        network = parser.get_parsed_content("network")
        network.load_state_dict(torch.load(model / "models" / "model.pt"))
    else:
        network = torch.jit.load(model)
    (key,) = parser["_meta_"]["network_data_format"]["inputs"]
    item = before({key: MetaTensor.ensure_torch_and_prune_meta(torch.from_numpy(image), meta)})
    others = {name: value[None] for name, value in item.items() if name != key and isinstance(value, torch.Tensor)}
    with torch.no_grad():
        scores = inferer(inputs=item[key][None], network=network.eval(), **others)
    return np.squeeze(after({"pred": scores[0], **item})["pred"].cpu().numpy(), 0).astype(np.uint8)


def by_its_code(model: Any, image: np.ndarray, meta: dict[str, Any], names: list[str]) -> np.ndarray:
    pytest.importorskip("monai.deploy", reason="needs MONAI Deploy's App SDK, see `make test-deploy`")
    from monai.deploy.core import Fragment, Image, IOType
    from monai.deploy.operators.monai_bundle_inference_operator import (
        BundleConfigNames,
        IOMapping,
        MonaiBundleInferenceOperator,
    )

    if image.ndim == 3:  # as DICOMSeriesToVolumeOperator gives it
        spacing = {f"{axis}_pixel_spacing": 1.0 for axis in ("row", "col", "depth")}
        value = Image(np.swapaxes(image, 0, 2), {**spacing, "nifti_affine_transform": meta["affine"]})
    else:
        value = Image(image, meta)
    results: dict[str, Any] = {}
    ports = [[IOMapping(name, Image, IOType.IN_MEMORY)] for name in ("image", "pred")]
    operator = MonaiBundleInferenceOperator(
        Fragment(), app_context=SimpleNamespace(models=None), input_mapping=ports[0], output_mapping=ports[1],
        bundle_path=model, bundle_config_names=BundleConfigNames(config_names=names),
    )  # fmt: skip
    taken = SimpleNamespace(receive=lambda _name: value)
    given = SimpleNamespace(get=lambda _name: None, emit=lambda result, name: results.update({name: result}))
    operator.compute(taken, given, None)
    return np.swapaxes(results["pred"].asnumpy(), 0, 2)


WAYS = [by_the_rules, pytest.param(by_its_code, marks=pytest.mark.deploy)]


def expect_equal(root: Path, weights: Path, image: Any, way: Any, folder: Path) -> None:
    """Assert that the operator makes of a case what `inference.json` writes, from the folder and from TorchScript."""
    names = [name for name in ("inference", "inference_volume") if (root / "configs" / f"{name}.json").is_file()]
    files, checkpoint = [root / "configs" / f"{name}.json" for name in names], str(weights)
    own = {"bundle_root": str(root), "input": image, "output_dir": str(folder / "own"), "device": "cpu"}
    run_bundle(files, {**own, "checkpoint": checkpoint, "bf16": False})  # the operator knows but `inferer`
    expected = np.asarray(nibabel.load(folder / "own" / f"{case_name(ensure_tuple(image)[0])}_seg.nii.gz").dataobj)
    assert len(np.unique(expected)) > 1
    ckpt_export(
        net_id="network_def", filepath=str(folder / "model.ts"), ckpt_file=checkpoint,
        config_file=[str(file) for file in files], meta_file=str(root / "configs" / "metadata.json"),
    )  # fmt: skip
    loaded = LoadImage(image_only=True, ensure_channel_first=True)(image)
    affine, array = loaded.affine.numpy(), loaded.numpy()
    meta: dict[str, Any] = {"affine": affine, "original_affine": affine, "spacing": np.ones(3)}
    if len(array) == 1:
        array = array[0]
        meta |= {"spatial_shape": np.array(array.shape), "original_channel_dim": "no_channel"}
    # some CPUs round TorchScript's fused operations differently, which turns a voxel of nearly equal scores
    for model, share in ((root, 0.0), (folder / "model.ts", 1e-4)):
        assert np.mean(way(model, array.copy(), dict(meta), names) != expected) <= share


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in MARKS.items() if name not in FLAT])
def test_the_operator_makes_the_masks_of_the_bundle(bundle_on_phantom, name, way, tmp_path):
    bundle = bundle_on_phantom(name).small_copy(tmp_path / name)
    give_weights(bundle)
    image = held_out(bundle)
    if (bundle.root / "configs" / "inference_volume.json").is_file():
        slices = LoadImage(image_only=True, ensure_channel_first=True)(image)
        image = str(tmp_path / "scan.nii.gz")
        save_volume(MetaTensor((slices / 255 * 1400 - 1000)[..., None].repeat(1, 1, 1, 3)), Path(image))
    expect_equal(bundle.root, bundle.weights, image, way, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["hippocampus_mri_scse_segmentation", "hippocampus_mri_egcnn_segmentation"])
def test_the_operator_makes_the_masks_of_shipped_weights(real_data, name, way, tmp_path):
    (root,) = [root for root in BUNDLES if root.name == name]
    for case in cases(real_data("hippocampus"), "validation")[:3]:
        (folder := tmp_path / case_name(case["image"])).mkdir()
        expect_equal(root, root / "models" / "model.pt", case["image"], way, folder)
