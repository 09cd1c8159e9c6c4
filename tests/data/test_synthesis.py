# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, SaveImage

from monai_attn.data import cases
from monai_attn.data.synthesis import intensity_statistics, synthesize_dataset, synthesize_image
from monai_attn.errors import DataError


@pytest.fixture
def label() -> torch.Tensor:
    label = torch.zeros(1, 20, 22, 24, dtype=torch.uint8)
    label[0, 5:15, 5:17, 5:12] = 1
    label[0, 5:15, 5:17, 12:19] = 2
    return label


def save(volume: torch.Tensor, path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    SaveImage(output_dtype=np.float32, writer="NibabelWriter", print_log=False)(
        MetaTensor(volume.float(), affine=torch.eye(4)), filename=str(path)
    )
    return f"{path}.nii.gz"


def test_statistics_are_those_of_each_structure(label):
    image = label.float() * 50 + torch.randn(label.shape)
    statistics = intensity_statistics(image, label)
    assert set(statistics) == {1, 2}
    assert statistics[2][0] == pytest.approx(float(image[label == 2].mean()))
    assert statistics[2][1] == pytest.approx(1.0, abs=0.1)


def test_a_drawn_image_has_the_contrast_of_its_structures_and_nothing_far_outside(label):
    image = synthesize_image(label, {1: (20.0, 2.0), 2: (100.0, 5.0)}, np.random.RandomState(0))
    inner = [image[0, 7:13, 7:15, 7:10], image[0, 7:13, 7:15, 14:17]]
    assert [float(part.mean()) for part in inner] == pytest.approx([20, 100], rel=0.2)
    assert image.min() >= 0
    assert image[0, 0].max() == 0


def test_a_drawn_image_depends_on_its_random_state_alone(label):
    draw = [synthesize_image(label, {1: (20.0, 2.0), 2: (9.0, 5.0)}, np.random.RandomState(s)) for s in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_a_class_without_statistics_is_refused(label):
    with pytest.raises(ValueError, match=r"classes \[2\]"):
        synthesize_image(label, {1: (20.0, 2.0)}, np.random.RandomState(0))


def test_a_data_set_has_the_real_case_first_and_keeps_copies_together(label, tmp_path):
    like = [
        save(label * 50 + 10 * torch.rand(label.shape), tmp_path / "real" / "i"),
        save(label, tmp_path / "real" / "l"),
    ]
    for name in ("a", "b", "c"):
        save(label, tmp_path / "maps" / name)
    folder = synthesize_dataset(tmp_path / "maps", tmp_path / "out", like=like, copies=2)
    listing = json.loads((folder / "dataset.json").read_text())
    assert listing["training"][0] == {"image": like[0], "label": like[1]}
    assert [item["image"] for item in listing["validation"]] == ["images/c_0.nii.gz", "images/c_1.nii.gz"]
    assert len(cases(folder)) == 1 + 4
    load = LoadImage(image_only=True)
    assert torch.equal(load(str(folder / "labels" / "a_1.nii.gz")), label[0].float())
    with pytest.raises(DataError, match="holds a data set already"):
        synthesize_dataset(tmp_path / "maps", folder, like=like)


def test_a_label_map_with_an_unknown_class_is_named(label, tmp_path):
    like = [save(label.float(), tmp_path / "real" / "i"), save(label.clamp(max=1), tmp_path / "real" / "l")]
    path = save(label, tmp_path / "maps" / "a")
    with pytest.raises(DataError, match=r"classes \[2\]") as caught:
        synthesize_dataset(tmp_path / "maps", tmp_path / "out", like=like)
    assert caught.value.what == path
