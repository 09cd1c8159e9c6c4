# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_attn.visualize import figures


@pytest.fixture
def volume() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(1, 12, 10, 8, generator=torch.Generator().manual_seed(0))
    return image, (image > 0.8).to(torch.uint8)


def test_figures_are_saved_with_the_same_bytes_each_time(volume, tmp_path):
    paths = [
        figures.save(figures.overlay(volume[0], {"truth": volume[1]}, title="case"), tmp_path / name / "f.png")
        for name in ("a", "b")
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size < 300_000


def test_a_picture_of_noise_is_small_too(tmp_path):
    noise, block = torch.rand(1, 300, 300, 2), torch.zeros(1, 300, 300, 2)
    block[:, 100:200, 50:150] = 1
    path = figures.save(figures.overlay(noise, {"truth": block, "other": 2 * block}), tmp_path / "a.png")
    assert path.stat().st_size < 300_000


def test_pixels_are_what_is_drawn(volume):
    drawn = figures.pixels(figures.overlay(volume[0], {"truth": volume[1]}, title="case"))
    assert (drawn.dtype, drawn.ndim, drawn.shape[2]) == (np.uint8, 3, 3)
    assert drawn.std() > 0


@pytest.mark.parametrize("axcodes", ["RAS", "LPS"])
def test_the_letters_are_at_the_sides_that_they_name(axcodes):
    """A bright corner at the right, front and top of the patient, wherever the array has it."""
    signs = {"RAS": (1, 1, 1), "LPS": (-1, -1, 1)}[axcodes]
    image = MetaTensor(torch.zeros(1, 8, 8, 8), affine=torch.diag(torch.tensor([*signs, 1.0])))
    ends = [-1 if sign > 0 else 0 for sign in signs]
    image[0, ends[0], ends[1], ends[2]] = 1
    panel = figures.overlay(image, {"truth": image.as_tensor().int()}, spatial_dim=2).axes[0]
    x, y = (end % 8 for end in ends[:2])
    across, up = (panel.transAxes.inverted().transform(panel.transData.transform((x, y)))).tolist()
    assert across < 0.1  # where the R is
    assert up > 0.9  # where the A is
    assert [text.get_text() for text in panel.texts] == ["R", "L", "P", "A"]
