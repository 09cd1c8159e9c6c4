# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import AttentionUnet, SegResNet, UNet
from torch import nn

from monai_attn.adapt import autofocus, recalibrate
from monai_attn.blocks import Gate
from monai_attn.errors import ConfigError
from monai_attn.inferers import HaloInferer
from monai_attn.nets import EGCNN, AFNet, FocusNet, SCSEUNet
from monai_attn.visualize import GateMaps, capture_attention, gate_title
from monai_attn.visualize.maps import voxel_sizes


def maps_of(network, image):
    maps = GateMaps(network.eval())
    with torch.no_grad():
        return maps.split(maps(image), image)


def egcnn(**options):
    return EGCNN(SegResNet(2, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)), **options)


@pytest.mark.parametrize(
    ("network", "names"),
    [
        (SCSEUNet(2, 1, 2, features=4, depth=2), ["encoder_se.0", "encoder_se.1", "decoder_se.0", "decoder_se.1"]),
        (FocusNet(2, 1, 1, channels=(8, 8, 16, 16), se_reduction=4), ["levels.0", "levels.1"]),
        (egcnn(), ["gates.0", "edges"]),
        (egcnn(edge_classes=2), ["gates.0", "edges_1", "edges_2"]),
        (AFNet(2, 1, 2, n_autofocus=1, channels=(4, 4, 6, 6), dilations=(1, 2)), ["trunk.blocks.0.second"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_paper_has_its_maps_on_the_grid_of_the_image(network, names):
    found = maps_of(network, torch.randn(2, 1, 16, 24))
    assert [name.removesuffix(".spatial") for name in found] == names
    assert {(layer.shape, layer.dtype) for layer in found.values()} == {((2, 1, 16, 24), torch.float32)}


def unet():
    return UNet(2, 1, 2, (4, 8, 8), (2, 2), num_res_units=1)


TITLES = [
    (SCSEUNet(2, 1, 2, features=4, depth=1, positions="P6"), ["encoder 1", "bottleneck", "decoder 1", "classifier"]),
    (FocusNet(2, 1, 1, channels=(8, 8, 16), se_reduction=4), ["level 1"]),
    (egcnn(), ["gate 1"]),
    (AFNet(2, 1, 2, n_autofocus=2, channels=(4, 4, 6, 6)), ["block 1, layer 1", "block 1, layer 2"]),
    (recalibrate(unet(), "scse", "P6"), ["encoder 1", "encoder 2", "bottleneck", "decoder 2", "classifier"]),
    (recalibrate(AttentionUnet(2, 1, 2, (4, 8), (2,)), zero_effect=True), ["encoder 1", "decoder 1"]),
    (recalibrate(SegResNet(2, 8, blocks_down=(1, 1), blocks_up=(1,))), ["down layer 1", "up layer 1"]),
    (autofocus(unet(), last=2), ["decoder 2, unit 1", "decoder 1, unit 1"]),
    (nn.Sequential(nn.Sequential(Gate())), ["layer 1.1"]),
]  # fmt: skip


@pytest.mark.parametrize(("network", "titles"), TITLES, ids=lambda value: type(value).__name__)
def test_a_gate_has_a_title_for_people(network, titles):
    found = [gate_title(path) for path in GateMaps(network).gates]
    assert [title.removesuffix(", spatial") for title in found] == titles


def test_a_map_is_the_mean_over_the_channels_of_its_gate():
    network, image = FocusNet(2, 1, 1, channels=(8, 8, 16), se_reduction=4), torch.randn(1, 1, 8, 8)
    found = maps_of(network, image)
    with torch.no_grad(), capture_attention(network) as captured:
        network(image)
    torch.testing.assert_close(found["levels.0"], captured["levels.0.gate"].mean(dim=1, keepdim=True))


def test_a_voxels_scale_is_the_dilation_of_the_largest_weight_in_mm_of_the_layers_grid():
    network = AFNet(3, 1, 2, n_autofocus=1, channels=(4, 4, 6, 6), dilations=(1, 3))
    image = MetaTensor(torch.randn(1, 1, 8, 8, 8), affine=torch.diag(torch.tensor([3.0, 3, 3, 1])))
    (scales,) = maps_of(network, image).values()
    with torch.no_grad(), capture_attention(network) as captured:
        network(image.as_tensor())
    (weights,) = captured.values()
    assert torch.equal(torch.as_tensor(scales), torch.tensor([3.0, 9.0])[weights.argmax(dim=1, keepdim=True)])
    half = autofocus(UNet(2, 1, 2, (4, 8), (2,)), where=lambda path, _: "submodule" in path, dilations=(1, 2))
    (scales,) = maps_of(half, torch.randn(1, 1, 16, 16)).values()
    assert set(scales.unique().tolist()) <= {2.0, 4.0}  # half the resolution sees twice as far
    unequal = MetaTensor(torch.zeros(1, 4, 4, 4), affine=torch.diag(torch.tensor([1.0, 2, 4, 1])))
    assert voxel_sizes(unequal[None]) == [pytest.approx(2.0)]  # the side of a cube of that volume
    assert voxel_sizes(torch.zeros(3, 1, 4, 4)) == [1.0] * 3


def test_windows_are_blended_before_a_scale_is_chosen():
    network = AFNet(2, 1, 2, n_autofocus=1, channels=(4, 4, 6, 6), dilations=(1, 3)).eval()
    maps, image = GateMaps(network), torch.randn(1, 1, 24, 24)
    with torch.no_grad():
        scales = maps.split(SlidingWindowInferer(16, overlap=0.5, mode="gaussian")(image, maps), image)
    assert set(next(iter(scales.values())).unique().tolist()) <= {1.0, 3.0}


class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def forward(self, x):
        return x


def test_a_network_without_spatial_gates_and_one_that_does_not_use_them_are_refused():
    with pytest.raises(ConfigError, match="its gate gate was not used"):
        maps_of(Idle(), torch.zeros(1, 1, 4, 4))
    for network in (nn.Conv2d(1, 1, 1), SCSEUNet(2, 1, 2, features=4, depth=1, se="cse")):
        with pytest.raises(ConfigError, match="it has no gate with a place in the image"):
            GateMaps(network)
    with pytest.raises(ConfigError, match="an exported network does not show its gates"):
        GateMaps(torch.jit.script(SCSEUNet(2, 1, 2, features=4, depth=1)))


@torch.no_grad()
def test_maps_of_a_network_that_crops_lie_where_its_output_does():
    network = AFNet(2, 1, 2, n_autofocus=2, padding="official", channels=(4, 4, 6, 6, 6, 6, 8, 8)).eval()
    image = torch.rand(1, 1, 70, 65)
    maps = GateMaps(network)
    found = maps.split(HaloInferer(tile=20)(image, maps), image)
    assert all(scale.shape == image.shape for scale in found.values())
    assert all(set(scale.unique().tolist()) <= {2, 6, 10, 14} for scale in found.values())
