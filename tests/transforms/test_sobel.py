# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import SobelGradients

from monai_attn.transforms import sobel_edges

DIMS = pytest.mark.parametrize("spatial_dims", [1, 2, 3])


def cube(spatial_dims: int, low: int = 7, high: int = 13, size: int = 20) -> torch.Tensor:
    mask = torch.zeros(1, 1, *[size] * spatial_dims, dtype=torch.bool)
    mask[(0, 0, *[slice(low, high)] * spatial_dims)] = True
    return mask


def distance_from_center(radius: int, spatial_dims: int) -> torch.Tensor:
    axis = torch.arange(-radius - 5, radius + 6).float()
    return torch.stack(torch.meshgrid(*[axis] * spatial_dims, indexing="ij")).norm(dim=0)


def blobs(spatial_dims: int, size: int = 32) -> torch.Tensor:
    noise = torch.randn(20, 1, *[5] * spatial_dims)
    return F.interpolate(noise, size=[size] * spatial_dims, mode={2: "bilinear", 3: "trilinear"}[spatial_dims]) > 0


def band(mask: torch.Tensor) -> torch.Tensor:
    """Dilation minus erosion by 3 voxels along each axis."""
    pool = {2: F.max_pool2d, 3: F.max_pool3d}[mask.ndim - 2]
    return (pool(mask.float(), 3, 1, 1) > 0) & (pool((~mask).float(), 3, 1, 1) > 0)


def monai_magnitude(x: torch.Tensor, padding_mode: str) -> torch.Tensor:
    """MONAI's gradients of one sample at a time, as their magnitude."""
    sobel = SobelGradients(padding_mode=padding_mode)
    spatial_dims = x.ndim - 2
    return torch.stack([sobel(sample).as_tensor().unflatten(0, (spatial_dims, -1)).norm(dim=0) for sample in x])


@DIMS
@pytest.mark.parametrize("value", [True, 0.7])
def test_a_constant_has_no_edge_not_even_at_the_border(spatial_dims, value):
    constant = torch.full((2, 3, *[5] * spatial_dims), value)
    assert torch.equal(sobel_edges(constant), torch.zeros(constant.shape))


@DIMS
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ramp_of_slope_one_has_magnitude_one(spatial_dims, axis):
    size, axis = 6, axis % spatial_dims
    ramp = torch.arange(size).float().reshape(-1, *[1] * (spatial_dims - 1 - axis)).expand([size] * spatial_dims)
    magnitude = sobel_edges(ramp[None, None])[0, 0]
    inside = magnitude.narrow(axis, 1, size - 2)
    assert torch.allclose(inside, torch.ones_like(inside), atol=1e-6)
    scale = {1: 2, 2: 8, 3: 32}[spatial_dims]
    assert torch.allclose(sobel_edges(ramp[None, None], normalize=False)[0, 0], scale * magnitude, atol=1e-4)


@DIMS
@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0.5, 0.5, 0, 0, 0]),  # a half space
        ([0, 0, 0, 1, 0, 0, 0], [0, 0, 0.5, 0, 0.5, 0, 0]),  # a sheet of one voxel
    ],
)
def test_a_face_has_one_half_on_the_two_voxels_at_it(spatial_dims, mask, expected):
    mask, expected = (
        torch.tensor(profile).reshape(1, 1, -1, *[1] * (spatial_dims - 1)).expand(1, 1, *[len(profile)] * spatial_dims)
        for profile in (mask, expected)
    )
    assert torch.equal(sobel_edges(mask.bool()), expected)


@DIMS
@pytest.mark.parametrize(("low", "high"), [(7, 13), (10, 11)])
def test_the_edge_of_a_cube_or_of_a_voxel_is_one_voxel_on_either_side_of_its_faces(spatial_dims, low, high):
    edges = sobel_edges(cube(spatial_dims, low, high)) > 0
    inside = cube(spatial_dims, min(low + 1, 10), max(high - 1, 11))
    assert torch.equal(edges, cube(spatial_dims, low - 1, high + 1) & ~inside)
    assert edges.sum() == (8**spatial_dims - 4**spatial_dims if low == 7 else 3**spatial_dims - 1)  # 448 in 3D


@pytest.mark.parametrize(
    ("spatial_dims", "radius", "total", "voxels", "strong_voxels"),
    [
        (2, 8, 1.015, 2.63, 1.75),
        (2, 12, 1.008, 2.60, 1.70),
        (2, 16, 1.016, 2.59, 1.75),
        (3, 8, 0.998, 2.97, 1.84),
        (3, 12, 1.003, 2.94, 1.76),
        (3, 16, 1.009, 2.98, 1.82),
    ],
)
def test_the_magnitudes_of_a_ball_add_up_to_its_surface(spatial_dims, radius, total, voxels, strong_voxels):
    distance = distance_from_center(radius, spatial_dims)
    magnitude = sobel_edges((distance <= radius)[None, None])[0, 0]
    surface = 2 * math.pi * radius if spatial_dims == 2 else 4 * math.pi * radius**2
    assert magnitude.sum() / surface == pytest.approx(total, abs=6e-4)
    assert (magnitude > 0).sum() / surface == pytest.approx(voxels, abs=6e-3)
    assert (magnitude > 0.25).sum() / surface == pytest.approx(strong_voxels, abs=6e-3)
    assert (distance[magnitude > 0] - radius).abs().max() < {2: 1.4, 3: 1.7}[spatial_dims]


@pytest.mark.parametrize(("spatial_dims", "missing"), [(2, 0.01), (3, 0.002)])
def test_the_edge_of_a_smooth_blob_is_its_dilation_minus_its_erosion(spatial_dims, missing):
    mask = blobs(spatial_dims)
    edges, expected = sobel_edges(mask) > 0, band(mask)
    assert not (edges & ~expected).any()
    assert (expected & ~edges).sum() < missing * expected.sum()


@DIMS
def test_it_equals_monai_with_the_same_border_and_its_default_away_from_the_border(spatial_dims):
    x = torch.rand(2, 3, *[9] * spatial_dims)
    assert torch.allclose(sobel_edges(x), monai_magnitude(x, "replicate"), atol=1e-6)
    mask = cube(spatial_dims)
    assert torch.allclose(sobel_edges(mask), monai_magnitude(mask.float(), "reflect"), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=3), st.integers(1, 3), st.booleans())
def test_a_bool_mask_gives_what_its_numbers_give_in_any_shape(spatial, channels, normalize):
    mask = torch.rand(2, channels, *spatial) > 0.5
    edges = sobel_edges(mask, normalize=normalize)
    assert edges.dtype == torch.float32
    assert edges.shape == mask.shape
    assert torch.allclose(edges, sobel_edges(mask.double(), normalize=normalize).float(), atol=1e-5)


@DIMS
def test_its_derivatives_are_those_of_finite_differences(spatial_dims):
    x = torch.rand(2, 2, *[4, 3, 1][:spatial_dims], dtype=torch.double, requires_grad=True)
    for normalize in (True, False):
        assert torch.autograd.gradcheck(lambda x, n=normalize: sobel_edges(x, normalize=n), x)
    assert torch.autograd.gradgradcheck(sobel_edges, x)


@DIMS
def test_the_gradient_is_zero_where_the_mask_is_flat_and_finite_everywhere(spatial_dims):
    mask = cube(spatial_dims).float().requires_grad_()
    sobel_edges(mask).sum().backward()
    flat = torch.ones_like(mask).requires_grad_()
    sobel_edges(flat).sum().backward()
    assert torch.isfinite(mask.grad).all()
    assert mask.grad.abs().max() > 0.1
    assert torch.equal(flat.grad, torch.zeros_like(flat))


@pytest.mark.parametrize("slope", [1e-2, 1e-4])
def test_a_faint_ramp_has_the_gradient_of_a_steep_one(slope):
    ramp = torch.arange(8.0)[None, None, :, None].expand(1, 1, 8, 5).clone().requires_grad_()
    faint = (slope * ramp).detach().requires_grad_()
    magnitude = sobel_edges(faint)
    assert torch.allclose(magnitude, slope * sobel_edges(ramp), rtol=1e-3, atol=0)
    gradients = [torch.autograd.grad(edges.sum(), x)[0] for edges, x in ((magnitude, faint), (sobel_edges(ramp), ramp))]
    assert torch.allclose(*gradients, atol=1e-3)


def test_other_types_are_computed_in_single_precision_and_any_memory_layout_is_taken():
    x = 100 * torch.rand(1, 2, 6, 7)
    for dtype in (torch.float16, torch.bfloat16, torch.uint8, torch.int64):
        assert sobel_edges(x.to(dtype)).dtype == torch.float32
        assert torch.equal(sobel_edges(x.to(dtype)), sobel_edges(x.to(dtype).float()))
    last = x.to(memory_format=torch.channels_last)
    torch.testing.assert_close(sobel_edges(last), sobel_edges(x))
    assert torch.equal(sobel_edges(x[:, :1].expand(-1, 3, -1, -1))[:, 2], sobel_edges(x)[:, 0])


@pytest.mark.parametrize("shape", [(2, 3), (1, 1, 4, 4, 4, 4)])
def test_a_missing_axis_is_refused(shape):
    with pytest.raises(ValueError, match="must have shape"):
        sobel_edges(torch.zeros(shape))
