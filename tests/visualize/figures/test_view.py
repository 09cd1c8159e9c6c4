# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_attn.visualize.figures import slice_view


def volume(axes, sides=(1.0, 1.0, 1.0)):
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(axes) @ np.diag(sides)
    return MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.as_tensor(affine))


@pytest.mark.parametrize(("axes", "flipped"), [(np.eye(3), False), (np.diag([-1, -1, 1]), True)], ids=["RAS", "LPS"])
def test_slices_are_shown_in_radiological_convention_however_they_are_stored(axes, flipped):
    letters = {2: ("R", "L", "P", "A"), 1: ("R", "L", "I", "S"), 0: ("A", "P", "I", "S")}
    for spatial_dim, expected in letters.items():
        view = slice_view(volume(axes), spatial_dim)
        assert view.letters == expected
        assert view.right is flipped
        assert view.up is not (spatial_dim == 2 and flipped)


@pytest.mark.parametrize(("degrees", "letters"), [(30, ("RA", "LP", "PR", "AL")), (5, ("R", "L", "P", "A"))])
def test_an_oblique_axis_has_the_letters_of_both_directions(degrees, letters):
    turn = np.radians(degrees)
    axes = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    assert slice_view(volume(axes), 2).letters == letters


def test_the_metadata_make_the_aspect():
    image = volume(np.eye(3), (1.0, 2.0, 6.0))
    assert [slice_view(image, axis).aspect for axis in (0, 1, 2)] == pytest.approx([3, 6, 2])
    assert slice_view(torch.zeros(3, 8, 9)) == (1.0, True, False, None)  # nobody knows the directions of a picture
    assert slice_view(torch.zeros(1, 8, 9, 7)) == (1.0, True, True, None)
