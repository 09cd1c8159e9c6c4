# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import multiprocessing
import shutil
import sysconfig

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_attn.blocks import scse_kernels as kernels
from monai_attn.blocks.fast_max import larger_product

COMPILER = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0])
compiled = pytest.mark.skipif(not kernels.has_kernels(), reason="the compiled passes are not built: no C compiler")
TILED = (3, 70, 61)  # more than one tile, the last one not full

sizes = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple) | st.just((4100,)) | st.just((2, 2051))
shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), sizes).map(lambda shape: (*shape[:2], *shape[2]))


def coarse(*shape: int) -> torch.Tensor:
    """Numbers of few bits, negative ones and zeros too, whose products are exact and often equal."""
    return torch.randint(-8, 9, shape) / 8


def maps(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return coarse(*u.shape[:2], *[1] * (u.ndim - 2)).abs(), coarse(u.shape[0], 1, *u.shape[2:]).abs()


def squeeze_by_definition(u: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return u.flatten(2).mean(2), (F.conv1d, F.conv2d, F.conv3d)[u.ndim - 3](u, weight)


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler")
def test_an_installation_with_a_compiler_has_the_kernels():
    assert kernels.has_kernels(), "install again with `pip install -e .`, and read what the compiler says"


@compiled
@given(shape=shapes)
@settings(max_examples=40, deadline=None)
def test_squeeze_equals_mean_and_convolution(shape):
    u, weight = torch.randn(shape), torch.randn(1, shape[1], *[1] * (len(shape) - 2))
    for found, expected in zip(kernels.squeeze(u, weight), squeeze_by_definition(u.double(), weight.double())):
        torch.testing.assert_close(found.double(), expected, atol=3e-6, rtol=1e-6)


@compiled
@given(shape=shapes)
@settings(max_examples=40, deadline=None)
def test_excite_equals_the_definition_bitwise(shape):
    u = torch.randn(shape)
    channel, spatial = torch.rand(*shape[:2], *[1] * (u.ndim - 2)), torch.rand(shape[0], 1, *shape[2:])
    torch.testing.assert_close(kernels.excite(u, channel, spatial), larger_product(u, channel, spatial), atol=0, rtol=0)


@compiled
def test_excite_treats_zeros_infinities_and_nan_as_the_definition_does():
    numbers = torch.tensor([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, 1e-45, 3e38])
    channel = torch.tensor([0.0, 0.3, 1.0, math.nan]).reshape(1, 4, 1)
    u, spatial = (part.reshape(-1) for part in torch.meshgrid(numbers, channel.flatten(), indexing="ij"))
    u = u.expand(1, 4, -1).contiguous()
    found = kernels.excite(u, channel, spatial.reshape(1, 1, -1))
    expected = larger_product(u, channel, spatial)
    torch.testing.assert_close(found, expected, atol=0, rtol=0, equal_nan=True)
    assert torch.equal(found.signbit()[~found.isnan()], expected.signbit()[~found.isnan()])


@compiled
@given(shape=shapes)
@settings(max_examples=40, deadline=None)
def test_gradients_equal_those_of_autograd_in_float64_also_where_both_products_are_equal(shape):
    u, grad = coarse(*shape), coarse(*shape)
    channel, spatial = maps(u)
    weight = coarse(1, shape[1], *[1] * (u.ndim - 2))
    grad_means, grad_logits = coarse(*shape[:2]), coarse(*spatial.shape)
    exact = [x.double().requires_grad_() for x in (u, channel, spatial, weight)]
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    means, logits = squeeze_by_definition(exact[0], exact[3])
    outputs = larger_product(*exact[:3]), means, logits + bias
    expected = torch.autograd.grad(outputs, [*exact, bias], [x.double() for x in (grad, grad_means, grad_logits)])
    found = list(kernels.differentiate_maps(u, grad, channel, spatial))
    rest = kernels.differentiate_input(u, grad, channel, spatial, weight, grad_means, grad_logits)
    for ours, theirs in zip([rest[0], *found, *rest[1:]], expected):
        torch.testing.assert_close(ours.double(), theirs, atol=1e-5, rtol=1e-6)


@compiled
def test_results_do_not_depend_on_the_number_of_threads():
    u, grad = torch.randn(2, 5, *TILED), torch.randn(2, 5, *TILED)
    weight, spatial = torch.randn(1, 5, 1, 1, 1), torch.rand(2, 1, *TILED)
    channel, grad_logits = torch.rand(2, 5, 1, 1, 1), torch.randn(2, 1, *TILED)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            outputs = [*kernels.squeeze(u, weight), kernels.excite(u, channel, spatial)]
            outputs += kernels.differentiate_maps(u, grad, channel, spatial)
            outputs += kernels.differentiate_input(u, grad, channel, spatial, weight, grad[:, :, 0, 0, 0], grad_logits)
            results.append(outputs)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for others in results[1:] for one, other in zip(results[0], others))


@compiled
def test_a_forked_process_computes_after_its_parent_did():
    u, weight = torch.ones(2, 5, *TILED), torch.ones(5)  # made here: PyTorch's own threads would hang in the child
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    child = multiprocessing.get_context("fork").Process(target=kernels.squeeze, args=(u, weight))
    try:
        kernels.squeeze(u, weight)
        child.start()
        child.join(timeout=60)
        assert child.exitcode == 0
    finally:
        child.kill()
        torch.set_num_threads(threads)


@pytest.fixture
def _fresh_library():
    kernels._library.cache_clear()
    yield
    kernels._library.cache_clear()


@pytest.mark.usefixtures("_fresh_library")
def test_an_environment_variable_leaves_the_kernels_out(monkeypatch):
    monkeypatch.setenv("MONAI_ATTN_KERNELS", "0")
    assert not kernels.has_kernels()


@compiled
@pytest.mark.usefixtures("_fresh_library")
def test_kernels_of_another_version_are_left_out(monkeypatch):
    monkeypatch.setattr(kernels, "_VERSION", -1)
    assert not kernels.has_kernels()


@pytest.mark.usefixtures("_fresh_library")
@pytest.mark.parametrize("content", [None, b"", b"not a library"])
def test_a_missing_or_damaged_library_is_left_out(content, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "scse_kernels.py"))
    if content is not None:
        (tmp_path / "native").mkdir()
        (tmp_path / "native" / "_scse_kernels.abi3.so").write_bytes(content)
    assert not kernels.has_kernels()
