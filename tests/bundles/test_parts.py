# SPDX-License-Identifier: Apache-2.0
from typing import Any

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImage

from monai_attn.data import case_name, cases


def without(transforms: Compose, name: str) -> Compose:
    return Compose([step for step in transforms.transforms if name not in type(step).__name__])


@pytest.mark.parametrize(
    "name",
    [
        "hippocampus_mri_scse_segmentation",
        "skin_lesion_focusnet_segmentation",
        pytest.param("brats_mri_autofocus_segmentation", marks=pytest.mark.slow),  # a volume for each of four channels
        pytest.param("brats_mri_egcnn_segmentation", marks=pytest.mark.slow),
    ],
)
def test_a_program_that_loads_and_saves_by_itself_gets_the_same_mask(bundle_on_phantom, tmp_path, name):
    bundle = bundle_on_phantom(name)
    file = cases(bundle.data, "validation")[0]["image"]
    parser = bundle.parsed("inference", output_dir=str(tmp_path), provenance=None)
    before, inferer, after = map(parser.get_parsed_content, ("preprocessing", "inferer", "postprocessing"))
    classes = bundle.entries("metadata")["network_data_format"]["outputs"]["pred"]["num_channels"]
    levels = torch.linspace(-1, 1, classes + 1)[1:]

    def network(x: torch.Tensor) -> torch.Tensor:
        """Return the higher scores, the nearer the intensity comes to the level of a class."""
        column = levels.reshape(-1, *[1] * (x.ndim - 2))
        return column * x.mean(dim=1, keepdim=True) - column.square() / 2

    def segment(image: Any, before: Compose, after: Compose) -> torch.Tensor:
        item = before({"image": image})
        assert [key for key, value in item.items() if isinstance(value, torch.Tensor)] == ["image"]
        return after({**item, "pred": inferer(item["image"][None], network)[0]})["pred"]

    expected = segment(file, before, after)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(expected.unique()) > 1
    parts = without(before, "LoadImage"), without(after, "SaveImage")
    assert [len(part.transforms) for part in parts] == [len(before.transforms) - 1, len(after.transforms) - 1]
    reader = "PILReader" if bundle.suffix == ".png" else "NibabelReader"
    first = LoadImage(reader, ensure_channel_first=True)(file)
    for image in (LoadImage(reader)(file), first, MetaTensor(first.as_tensor(), affine=first.affine)):
        found = segment(image, *parts)
        assert torch.equal(found.as_tensor(), expected.as_tensor())
        assert torch.equal(found.affine, expected.affine)
    plain = first.as_tensor()
    assert torch.equal(segment(plain.numpy(), *parts), segment(MetaTensor(plain), *parts))
    assert len(list(tmp_path.iterdir())) == 1


def test_a_program_may_set_the_data_of_an_inference(bundle_on_phantom, tmp_path):
    bundle = bundle_on_phantom("hippocampus_mri_scse_segmentation")
    weights, output = tmp_path / "model.pt", tmp_path / "out"
    torch.save(bundle.parsed("inference").get_parsed_content("network_def").state_dict(), weights)
    files = {"bundle_root": str(bundle.root), "checkpoint": str(weights), "output_dir": str(output)}
    options = {**files, **bundle.small("inference"), "dataset_dir": str(tmp_path / "nothing"), "device": "cpu"}
    workflow = ConfigWorkflow(bundle.config("inference"), logging_file=False, workflow_type="infer", **options)
    image = cases(bundle.data, "validation")[0]["image"]
    workflow.dataset_data = [{"image": image}]
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    assert [path.name for path in output.glob("*.nii.gz")] == [f"{case_name(image)}_seg.nii.gz"]
