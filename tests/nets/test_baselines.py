# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_attn.nets import ASPP, AFNet, ASPPNet, DeepMedic

from .test_afnet import NARROW, support, trained

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIZES = {1: (20,), 2: (9, 13), 3: (7, 6, 10)}
DIMS = [1, 2, 3]
# counted from the authors' code, with the inert biases that we leave out
PAIRS = [(4, 5), (1, 7), (2, 5), (1, 3)]
OFFICIAL = {"cat": (478_435, 476_247, 476_815, 475_763), "sum": (967_330, 965_868, 965_710, 963_932)}
INERT = {"cat": 530, "sum": 890}

both = pytest.mark.parametrize("fusion", ["cat", "sum"])


def count(kind: type[nn.Module], *args, **options) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in kind(*args, **options).parameters())


def aspp(fusion: str, dims: int = 2, **options) -> ASPPNet:
    return ASPPNet(dims, 2, 3, fusion=fusion, **{"channels": NARROW, **options}).eval()


def deepmedic(dims: int = 2, **options) -> DeepMedic:
    return DeepMedic(dims, 2, 3, **{"channels": (3, 3, 4, 4, 4, 4, 5, 5), "fc_channels": (6, 6), **options}).eval()


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (ASPP, {"fusion": None}, "sum"),
        (ASPP, {"dilations": ()}, "dilations"),
        (ASPP, {"dilations": (0, 2)}, "dilations"),
        (ASPPNet, {"fusion": "add"}, "sum"),
        (ASPPNet, {"padding": "valid"}, "official"),
        (ASPPNet, {"init": "he"}, "paper"),
        (ASPPNet, {"channels": (3,)}, "channels"),
        (DeepMedic, {"channels": (3, 3, 4)}, "channels"),
        (DeepMedic, {"scale": 0}, "got 0"),
    ],
)
def test_a_bad_option_raises(network, options, message):
    with pytest.raises(ValueError, match=message):
        network(2, 2, 3, **options)


@both
def test_aspp_has_the_parameters_of_the_authors_code_without_its_inert_biases(fusion):
    found = [count(ASPPNet, 3, *pair, fusion=fusion) + INERT[fusion] for pair in PAIRS]
    assert found == list(OFFICIAL[fusion])


@pytest.mark.parametrize("dims", DIMS)
def test_aspp_has_the_parameters_of_its_formula_in_any_dimension(dims):
    c, classes, kernel = 4, 5, 3**dims
    trunk = count(AFNet, dims, c, classes, n_autofocus=0) - 51 * classes
    assert count(ASPPNet, dims, c, classes) == trunk + 4 * kernel * 50 * 30 + 2 * 120 + 121 * classes
    head = 4 * (kernel * 50 * 120 + 2 * 120 + 121 * classes)
    assert count(ASPPNet, dims, c, classes, fusion="sum") == trunk + head


def normalized(norm: nn.Module, u: torch.Tensor) -> torch.Tensor:
    mean, variance, weight, bias = (
        value.reshape(1, -1, *[1] * (u.ndim - 2))
        for value in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (u - mean) / (variance + norm.eps).sqrt() * weight + bias


@both
@pytest.mark.parametrize("dims", DIMS)
def test_the_pyramid_equals_its_definition_to_1e_12(dims, fusion):
    block = trained(ASPP(dims, 4, 3, fusion=fusion)).double()
    u, conv = torch.randn(2, 4, *SIZES[dims], dtype=torch.float64), CONV[dims]
    convs = [branch if fusion == "cat" else branch[0] for branch in block.branches]
    scales = [conv(u, c.conv.weight, padding=d, dilation=d) for c, d in zip(convs, (2, 6, 10, 14), strict=True)]
    if fusion == "cat":
        norm, _, head = block.joint
        expected = conv(normalized(norm, torch.cat(scales, 1)).clamp(min=0), head.weight, head.bias)
    else:
        activated = [normalized(c.adn.N, scale).clamp(min=0) for c, scale in zip(convs, scales)]
        heads = [branch[1] for branch in block.branches]
        expected = sum(conv(a, head.weight, head.bias) for a, head in zip(activated, heads))
    torch.testing.assert_close(block(u), expected, atol=1e-12, rtol=0)


@both
def test_the_receptive_radius_of_aspp_is_that_of_the_trunk_and_the_largest_dilation(fusion):
    network = aspp(fusion)
    assert network.receptive_radius == 28
    assert support(network, 2, 65) == [57, 57]
    assert aspp(fusion, dilations=(1, 9, 4)).receptive_radius == 14 + 9


@both
def test_official_padding_of_aspp_loses_14_voxels_at_every_side(fusion):
    network = aspp(fusion, 3, padding="official")
    assert network.crop == 14
    assert network(torch.rand(1, 2, 33, 29, 30)).shape == (1, 3, 5, 1, 2)
    with pytest.raises(ValueError, match="at least 29 voxels"):
        network(torch.rand(1, 2, 28, 33, 33))


def test_paper_init_of_aspp_draws_small_weights():
    network = ASPPNet(2, 4, 5, init="paper")
    weights = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d)])
    assert float(weights.detach().std()) == pytest.approx(0.01, rel=0.01)


@pytest.mark.parametrize("dims", DIMS)
def test_deepmedic_has_the_parameters_of_its_formula_in_any_dimension(dims):
    channels, c, classes = (30, 30, 40, 40, 40, 40, 50, 50), 4, 5
    path = 3**dims * sum(i * o for i, o in zip((c, *channels), channels)) + 2 * sum(channels)
    joined = 100 * 150 + 300 + 150 * 150 + 300 + 150 * classes + classes
    assert count(DeepMedic, dims, c, classes) == 2 * path + joined
    assert dims != 3 or 2 * path + joined == 662_215


def restated(network: DeepMedic, x: torch.Tensor) -> torch.Tensor:
    """The article's graph by the order of its parameters, in float64 and evaluation."""
    dims = x.ndim - 2

    def run(path: nn.Module, u: torch.Tensor) -> torch.Tensor:
        convs = [m for m in path.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d))]
        norms = [m for m in path.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        inputs = []
        for layer, conv in enumerate(convs, 1):
            inputs.append(u)
            if layer > 1 or path is network.classifier:
                u = normalized(norms[layer - 1 if path is network.classifier else layer - 2], u).clamp(min=0)
            u = CONV[dims](u, conv.weight, conv.bias, padding=conv.weight.shape[2] // 2)
            if layer in (4, 6, 8):
                earlier = inputs[layer - 2]  # what entered the layer before
                u = u.clone()
                u[:, : earlier.shape[1]] += earlier
        return u

    full = run(network.full, x)
    windows = x
    for axis in range(2, x.ndim):
        side = x.shape[axis]
        windows = windows.index_select(axis, torch.arange(side + -side % 3).clamp(max=side - 1)).unfold(axis, 3, 3)
    low = run(network.low, windows[(..., *[1] * dims)])  # the middle of three voxels
    for axis in range(2, x.ndim):
        low = low.repeat_interleave(3, axis).narrow(axis, 0, x.shape[axis])
    return run(network.classifier, torch.cat([full, low], 1))


@pytest.mark.parametrize("dims", DIMS)
def test_deepmedic_equals_its_graph_to_1e_12(dims):
    network = trained(deepmedic(dims)).double()
    x = torch.randn(2, 2, *SIZES[dims], dtype=torch.float64)
    torch.testing.assert_close(network(x), restated(network, x), atol=1e-12, rtol=1e-12)


def test_the_second_path_of_deepmedic_sees_every_third_voxel_three_times_as_far():
    network = trained(deepmedic(1)).double()
    for module in network.modules():
        if isinstance(module, nn.Conv1d):
            nn.init.uniform_(module.weight, 0.1, 0.3)
    x = torch.rand(1, 2, 99, dtype=torch.float64, requires_grad=True)
    for path, step in ((network.full, 1), (lambda u: network.low(network.down(u[..., 1:])), 3)):
        output = path(x)
        (gradient,) = torch.autograd.grad(output[..., output.shape[-1] // 2].sum(), x)
        seen = (gradient != 0).any(1).nonzero()[:, 1]
        assert len(seen) == 17
        assert seen.diff().unique() == step


def test_deepmedic_drops_values_in_training_behind_the_first_1x1_layer():
    network, x = deepmedic(), torch.rand(2, 2, 9, 8)
    assert torch.equal(network(x), network(x))
    assert [m.p for m in network.classifier.modules() if isinstance(m, nn.Dropout)] == [0.0, 0.5, 0.5]
