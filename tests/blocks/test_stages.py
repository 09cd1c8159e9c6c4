# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_attn.blocks.stages import ConvStage, DenseStage, IndexUnpool, MaxPoolWithIndices, UpsampleTo

from ..conftest import count

SIZES = {1: (9,), 2: (7, 6), 3: (5, 3, 4)}
UNPOOL = {1: F.max_unpool1d, 2: F.max_unpool2d, 3: F.max_unpool3d}
POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def kinds(module: nn.Module) -> list[str]:
    return [type(leaf).__name__ for leaf in module.modules() if not list(leaf.children())]


@pytest.mark.parametrize(("dims", "kernel_size", "num_convs"), [(1, 7, 1), (2, 1, 3), (2, 5, 2), (3, 3, 2)])
def test_conv_stage_keeps_the_size_and_sets_the_channels(dims, kernel_size, num_convs):
    stage = ConvStage(dims, 2, 3, kernel_size=kernel_size, num_convs=num_convs)
    assert stage(torch.rand(2, 2, *SIZES[dims])).shape == (2, 3, *SIZES[dims])
    weights = 3 * (2 + 3 * (num_convs - 1)) * kernel_size**dims + 3 * num_convs
    assert count(stage) == weights


def test_conv_stage_takes_another_kernel_for_each_axis_in_the_order_of_the_axes():
    stage = ConvStage(2, 1, 1, kernel_size=(7, 3), act=None)
    nn.init.ones_(stage[0].conv.weight)
    nn.init.zeros_(stage[0].conv.bias)
    image = torch.zeros(1, 1, 15, 15)
    image[0, 0, 7, 7] = 1
    rows, columns = stage(image)[0, 0].nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 10, 6, 8)


@pytest.mark.parametrize(
    ("act", "norm", "expected"),
    [
        ("relu", None, ["Conv2d", "ReLU"]),
        ("relu", "batch", ["Conv2d", "BatchNorm2d", "ReLU"]),
        (None, "batch", ["Conv2d", "BatchNorm2d"]),
        (None, None, ["Conv2d"]),
        ("prelu", ("instance", {"affine": True}), ["Conv2d", "InstanceNorm2d", "PReLU"]),
        (("leakyrelu", {"negative_slope": 0.2}), "batch", ["Conv2d", "BatchNorm2d", "LeakyReLU"]),
    ],
)
def test_conv_stage_is_convolution_then_norm_then_activation(act, norm, expected):
    assert kinds(ConvStage(2, 1, 4, act=act, norm=norm, num_convs=2)) == 2 * expected


def test_conv_stage_equals_a_plain_restatement():
    stage = ConvStage(2, 2, 3, kernel_size=5, norm="batch").double().eval()
    nn.init.normal_(stage[0].adn.N.running_mean)
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    convolution, norm = stage[0].conv, stage[0].adn.N
    expected = F.conv2d(x, convolution.weight, convolution.bias, padding=2)
    expected = F.batch_norm(expected, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
    torch.testing.assert_close(stage(x), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("act", ["relu", "prelu"])
def test_dense_stage_equals_a_plain_restatement_whose_output_is_signed(act):
    stage = DenseStage(2, 2, 3, act=act).double().eval()
    for norm in (stage.norm1, stage.norm2, stage.norm3):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    x = torch.randn(2, 2, 6, 7, dtype=torch.float64)
    slope = stage.act.weight if act == "prelu" else torch.zeros(1, dtype=torch.float64)

    def step(norm: nn.Module, conv: nn.Module, features: torch.Tensor, padding: int) -> torch.Tensor:
        features = F.batch_norm(features, norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return F.conv2d(F.prelu(features, slope), conv.weight, conv.bias, padding=padding)

    first = step(stage.norm1, stage.conv1, x, 2)
    second = step(stage.norm2, stage.conv2, torch.cat([x, first], dim=1), 2)
    third = step(stage.norm3, stage.conv3, torch.cat([x, first, second], dim=1), 0)
    torch.testing.assert_close(stage(x), third, atol=1e-12, rtol=0)
    assert (third < 0).any()


def test_dense_stage_shares_one_prelu_slope():
    stage = DenseStage(2, 2, 3, act="prelu")
    assert [name for name, _ in stage.named_parameters() if name.startswith("act")] == ["act.weight"]


@pytest.mark.parametrize(
    "size", [(1,), (2,), (9,), (1, 1), (36, 45), (5, 7), (1, 6), (1, 1, 1), (17, 20, 24), (3, 1, 5)], ids=str
)
def test_pooling_halves_and_rounds_up_and_its_indices_point_at_the_maxima(size):
    x = torch.randn(2, 3, *size)
    maxima, indices = MaxPoolWithIndices(len(size))(x)
    assert maxima.shape == (2, 3, *(-(-side // 2) for side in size))
    torch.testing.assert_close(maxima, POOL[len(size)](x, 2, ceil_mode=True), atol=0, rtol=0)
    torch.testing.assert_close(x.flatten(2).gather(2, indices.flatten(2)), maxima.flatten(2), atol=0, rtol=0)


@pytest.mark.parametrize("size", [(8,), (6, 4), (9, 7), (1, 5), (4, 6, 2), (5, 3, 7)], ids=str)
def test_index_unpool_equals_max_unpool_of_torch(size):
    dims = len(size)
    maxima, indices = MaxPoolWithIndices(dims)(torch.randn(2, 3, *size))
    expected = UNPOOL[dims](maxima, indices, 2, output_size=size)
    torch.testing.assert_close(IndexUnpool(len(size))(maxima, list(size), indices), expected, atol=0, rtol=0)


@pytest.mark.parametrize("size", [(7,), (6, 5), (5, 3, 7)], ids=str)
def test_index_unpool_serves_each_group_of_channels_with_the_same_indices(size):
    _, indices = MaxPoolWithIndices(len(size))(torch.randn(2, 3, *size))
    x = torch.randn(2, 6, *indices.shape[2:])
    unpool = IndexUnpool(len(size))
    expected = torch.cat([unpool(half, list(size), indices) for half in x.chunk(2, dim=1)], dim=1)
    torch.testing.assert_close(unpool(x, list(size), indices), expected, atol=0, rtol=0)


def test_index_unpool_keeps_the_dtype_and_takes_non_contiguous_input():
    maxima, indices = MaxPoolWithIndices(2)(torch.randn(2, 3, 6, 5).to(torch.bfloat16))
    expected = IndexUnpool(2)(maxima, [6, 5], indices)
    strided_maxima, strided_indices = (t.movedim(-1, 0).contiguous().movedim(0, -1) for t in (maxima, indices))
    strided = IndexUnpool(2)(strided_maxima, [6, 5], strided_indices)
    assert expected.dtype == torch.bfloat16
    torch.testing.assert_close(strided, expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("mode", "names"), [("nearest", ["nearest"] * 3), ("linear", ["linear", "bilinear", "trilinear"])]
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_upsample_equals_interpolate_to_the_size(dims, mode, names):
    x = torch.rand(1, 2, *(-(-side // 2) for side in SIZES[dims]))
    output = UpsampleTo(dims, mode)(x, list(SIZES[dims]))
    expected = F.interpolate(x, size=SIZES[dims], mode=names[dims - 1])
    torch.testing.assert_close(output, expected, atol=0, rtol=0)


@pytest.mark.parametrize("mode", ["cubic", "bilinear", "", None])
def test_upsample_of_an_unknown_mode_raises(mode):
    with pytest.raises(ValueError, match="nearest"):
        UpsampleTo(2, mode)
