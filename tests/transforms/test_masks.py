# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from monai_attn.transforms import BrainMaskd


@pytest.mark.parametrize("outside", [0.0, -3.4595714])
@pytest.mark.parametrize("size", [(9,), (9, 8), (9, 8, 7)], ids=str)
def test_the_brain_is_where_any_channel_differs_from_outside(outside, size):
    generator = torch.Generator().manual_seed(0)
    inside = torch.zeros(1, *size, dtype=torch.bool)
    inside[(0, *[slice(2, 5)] * len(size))] = True
    image = torch.where(inside, torch.rand(2, *size, generator=generator) + 1, outside)
    image[0][inside[0] & (image[1] > 1.5)] = outside  # dark in one channel, but not in the other
    case = BrainMaskd("image", "brain")({"image": MetaTensor(image)})
    assert torch.equal(case["brain"].as_tensor(), inside.byte())


def test_an_empty_image_has_no_brain():
    assert not BrainMaskd("image", "brain")({"image": torch.zeros(1, 4, 4)})["brain"].any()
