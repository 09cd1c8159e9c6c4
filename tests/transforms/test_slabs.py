# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Spacing

from monai_attn.transforms.slabs import ResampleBySlabs


@pytest.mark.parametrize("size", [(7, 6, 5), (1, 9, 4), (17, 1, 1)])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_slabs_give_what_the_whole_volume_gives_bit_by_bit(size, align_corners, dtype, mode):
    volume = torch.randn(2, 3, 8, 9, 10, dtype=dtype)
    theta = torch.eye(3, 4, dtype=dtype) + 0.1 * torch.randn(2, 3, 4, dtype=dtype)
    options = {"mode": mode, "padding_mode": "border", "align_corners": align_corners}

    def resample():
        return F.grid_sample(volume, F.affine_grid(theta, [2, 3, *size], align_corners=align_corners), **options)

    expected = resample()
    for planes in (1, 3, 8, 100):
        with ResampleBySlabs(planes):
            assert torch.equal(resample(), expected)


def test_monais_resampling_is_the_same_and_other_functions_are_left_alone():
    image = MetaTensor(torch.rand(1, 11, 12, 13), affine=torch.diag(torch.tensor([0.9, 1.4, 2.0, 1.0]).double()))
    spacing = Spacing(1.0)
    with ResampleBySlabs():
        found = spacing(image)
        assert torch.equal(F.relu(image), image)
    assert torch.equal(found.as_tensor(), spacing(image).as_tensor())
    assert found.shape[1:] != image.shape[1:]
