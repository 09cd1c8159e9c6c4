# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.networks.blocks import Convolution
from torch import nn
from torch.overrides import TorchFunctionMode

from monai_attn.inferers import HaloInferer, LayerStep, LayerwiseInferer
from monai_attn.inferers.layerwise import _free_memory
from monai_attn.nets import AFNet, ASPPNet, DeepMedic

NARROW = (6, 6, 8, 8, 8, 8, 10, 10)
NETS = {
    "basic": lambda dims, **options: AFNet(dims, 2, 3, n_autofocus=0, channels=NARROW, **options),
    "afn2": lambda dims, **options: AFNet(dims, 2, 3, n_autofocus=2, channels=NARROW, **options),
    "cat": lambda dims, **options: ASPPNet(dims, 2, 3, fusion="cat", channels=NARROW, features=4, **options),
    "sum": lambda dims, **options: ASPPNet(dims, 2, 3, fusion="sum", channels=NARROW, features=4, **options),
}
SIZES = {1: (45,), 2: (31, 24), 3: (13, 9, 10)}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def network(name: str, dims: int, dtype: torch.dtype = torch.float32, **options) -> nn.Module:
    """In evaluation, with statistics and affine parameters that are not those of the start."""
    built = NETS[name](dims, **options)
    for norm in built.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for value, low, high in ((norm.weight, 1, 2), (norm.running_var, 0.1, 0.3), (norm.bias, 0, 0.5)):
                nn.init.uniform_(value, low, high)
            nn.init.normal_(norm.running_mean, std=0.1)
    return built.to(dtype).eval()


def assert_near(output: torch.Tensor, expected: torch.Tensor) -> None:
    if expected.numel() > 100:
        assert expected.std() > 1e-2  # or anything would be equal
    tolerance = TOLERANCE[expected.dtype] * float(expected.abs().max().clamp(min=1))
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=0)


class Recorder(Inferer):
    """An inferer to fall back on, that says it was used."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def __call__(self, inputs, network, *args, **kwargs):
        self.calls.append((args, kwargs))
        return network(inputs, *args, **kwargs)


class ConvolvedVoxels(TorchFunctionMode):
    """Count the voxels that convolutions compute."""

    def __init__(self) -> None:
        super().__init__()
        self.voxels = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func in (F.conv1d, F.conv2d, F.conv3d):
            self.voxels += output.numel()
        return output


# --- layer by layer ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slab", [5, 1000])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_the_output_is_that_of_the_whole_volume(name, dims, dtype, slab):
    net = network(name, dims, dtype)
    volume = torch.randn(2, 2, *SIZES[dims], dtype=dtype)
    assert_near(LayerwiseInferer(slab, spatial_dim=slab % dims)(volume, net), net(volume))


@given(size=st.lists(st.integers(1, 12), min_size=3, max_size=3), slab=st.integers(1, 7), axis=st.integers(0, 2))
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_any_size_can_be_cut_across_any_axis(size, slab, axis):
    net = network("afn2", 3, torch.float64)
    volume = torch.randn(1, 2, *size, dtype=torch.float64)
    assert_near(LayerwiseInferer(slab, axis)(volume, net), net(volume))


@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_every_layer_computes_every_voxel_once(name):
    net = network(name, 2)
    volume = torch.randn(1, 2, 50, 24)
    with ConvolvedVoxels() as whole:
        net(volume)
    with ConvolvedVoxels() as slabs:
        LayerwiseInferer(slab=8)(volume, net)
    with ConvolvedVoxels() as windows:
        SlidingWindowInferer(roi_size=24, overlap=0.5)(volume, net)
    assert slabs.voxels == whole.voxels
    assert windows.voxels > 1.4 * whole.voxels


class Dense(nn.Module):
    """A user's network of MONAI blocks, with skips of one and of two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Convolution(2, 2, 4, padding=1, act="prelu", norm="batch")
        self.second = nn.Conv2d(4, 4, 5, padding="same")
        self.third = nn.Conv2d(4, 4, (3, 1), padding=(3, 0), dilation=(3, 1))
        self.last = nn.Conv2d(4, 3, 1)

    def layerwise(self) -> list[LayerStep]:
        return [
            LayerStep(self.first, radius=1),
            LayerStep(self.second, radius=2),
            LayerStep(lambda u, v: self.third(u).relu() + v, radius=3, skip=1),
            LayerStep(lambda u, v: self.last(u * v), radius=0, skip=2),
        ]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        u = self.first(x)
        v = self.second(u)
        return self.last((self.third(v).relu() + u) * u)


@pytest.mark.parametrize("axis", [0, 1])
@torch.no_grad()
def test_a_users_network_runs_by_its_list_of_steps(axis):
    net = Dense().double().eval()
    volume = torch.randn(2, 2, 20, 17, dtype=torch.float64)
    assert_near(LayerwiseInferer(6, axis)(volume, net), net(volume))


class Listed(nn.Module):
    def __init__(self, run: Any, radius: int) -> None:
        super().__init__()
        self.run, self.radius = run, radius

    def layerwise(self) -> list[LayerStep]:
        return [LayerStep(self.run, self.radius)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.run(x)


@pytest.mark.parametrize(
    ("run", "radius"),
    [
        (nn.Conv2d(1, 1, 3, padding=1), 0),
        (nn.Conv2d(1, 1, 3, padding=1, dilation=1), -1),
        (nn.Conv2d(1, 1, 3), 1),
        (nn.Conv2d(1, 1, 3, stride=2, padding=1), 1),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)), 1),
        (nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)), 2),
        (nn.MaxPool2d(3, 1, 1), 1),
        (nn.Upsample(scale_factor=2), 0),
    ],
)
def test_a_step_that_is_not_one_layer_of_its_radius_raises(run, radius):
    with pytest.raises((ValueError, RuntimeError), match=r"step|narrow|negative|radius"):
        LayerwiseInferer(4)(torch.rand(1, 1, 9, 9), Listed(run, radius).eval())


def test_a_step_of_a_wider_radius_than_needed_is_still_exact():
    net = Listed(nn.Conv2d(1, 1, 3, padding=1), 3).eval()
    volume = torch.rand(1, 1, 9, 9)
    torch.testing.assert_close(LayerwiseInferer(4)(volume, net), net(volume).detach())


def test_a_meta_tensor_keeps_its_meta_data_and_a_plain_one_stays_plain():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(torch.randn(1, 2, 9, 8, 7), affine=affine, meta={"filename_or_obj": "case.nii"})
    net = network("afn2", 3)
    for inferer in (LayerwiseInferer(4), HaloInferer(4)):
        output = inferer(volume, net)
        assert isinstance(output, MetaTensor)
        assert output.meta["filename_or_obj"] == "case.nii"
        assert torch.equal(output.affine, affine)
        assert type(inferer(volume.as_tensor(), net)) is torch.Tensor


def test_the_input_stays_as_it_was_and_no_gradient_is_kept():
    volume = torch.randn(1, 2, 20, 17, requires_grad=True)
    before = volume.detach().clone()
    output = LayerwiseInferer(4)(volume, network("afn2", 2))
    assert torch.equal(volume, before)
    assert not output.requires_grad


@torch.no_grad()
def test_a_network_wrapped_for_several_devices_runs_layer_by_layer(tmp_path):
    net = network("afn2", 2)
    volume = torch.randn(1, 2, 20, 17)
    expected = net(volume)
    fallback = Recorder()
    inferers = (LayerwiseInferer(4, fallback=fallback), HaloInferer(8))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for wrapped in (nn.DataParallel(net), nn.parallel.DistributedDataParallel(net).eval()):
            for inferer in inferers:
                assert_near(inferer(volume, wrapped), expected)
    finally:
        torch.distributed.destroy_process_group()
    assert fallback.calls == []


@torch.no_grad()
def test_autocast_gives_the_dtype_and_about_the_values_of_the_whole_volume():
    net = network("basic", 2)
    volume = torch.rand(1, 2, 20, 17)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, expected = LayerwiseInferer(4)(volume, net), net(volume)
    assert output.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected.float(), atol=0.1, rtol=0.1)


# --- falling back ------------------------------------------------------------------------------------------------


def falls_back(net: nn.Module, reason: str, *args: Any, **options: Any) -> Recorder:
    fallback = Recorder()
    inferer = LayerwiseInferer(fallback=fallback, **options)
    volume = torch.rand(1, 2, 20, 17)
    with pytest.warns(UserWarning, match=reason):
        output = inferer(volume, net, *args)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = inferer(volume, net, *args)
    assert len(fallback.calls) == 2
    assert torch.equal(output, again)
    return fallback


def test_a_network_without_the_method_falls_back_with_one_warning():
    falls_back(
        DeepMedic(2, 2, 3, channels=(3, 3, 4, 4)).eval(), r"DeepMedic has no method layerwise\(\); using Recorder"
    )


@pytest.mark.parametrize("norm", ["instance", ("group", {"num_groups": 1}), ("batch", {"track_running_stats": False})])
def test_a_network_with_statistics_of_the_volume_falls_back(norm):
    net = AFNet(2, 2, 3, n_autofocus=1, channels=NARROW, norm=norm).eval()
    falls_back(net, "normalises by statistics of the volume")


def test_a_network_that_gets_further_arguments_falls_back_and_gets_them():
    class Scaled(Dense):
        def forward(self, x, scale):
            return scale * super().forward(x)

    fallback = falls_back(Scaled().eval(), "further arguments", 2.0)
    assert fallback.calls[0][0] == (2.0,)


def test_memory_decides_between_layers_and_the_fallback():
    net = network("basic", 2)
    volume = torch.rand(1, 2, 20, 17)
    falls_back(net, r"memory is short \(a layer needs .* GiB", max_memory=1e-5)
    fallback = Recorder()
    LayerwiseInferer(max_memory=1e-2, fallback=fallback)(volume, net)
    assert fallback.calls == []


def test_without_a_fallback_of_ones_own_monais_sliding_window_takes_over():
    net = DeepMedic(2, 2, 3, channels=(3, 3, 4, 4)).eval()
    volume = torch.rand(1, 2, 90, 30)
    with pytest.warns(UserWarning, match="SlidingWindowInferer"):
        output = LayerwiseInferer()(volume, net)
    expected = SlidingWindowInferer(roi_size=75, overlap=0.5, mode="gaussian")(volume, net)
    torch.testing.assert_close(output, expected)


def test_the_free_memory_of_this_machine_is_known():
    assert _free_memory(torch.device("cpu")) > 2**20


# --- refusing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inferer", [LayerwiseInferer(), HaloInferer(8)])
def test_a_network_in_training_mode_is_refused(inferer):
    with pytest.raises(ValueError, match=r"network\.eval\(\)"):
        inferer(torch.rand(1, 2, 20, 17), network("afn2", 2).train())


def test_a_network_that_crops_is_referred_to_the_halo_inferer():
    with pytest.raises(ValueError, match="14 voxels smaller at every side; use HaloInferer"):
        LayerwiseInferer()(torch.rand(1, 2, 40, 40), network("afn2", 2, padding="official"))


@pytest.mark.parametrize("options", [{"slab": 0}, {"max_memory": 0}, {"max_memory": -1.0}])
def test_bad_options_raise(options):
    with pytest.raises(ValueError, match=r"got (0|-1)"):
        LayerwiseInferer(**options)


@pytest.mark.parametrize("axis", [-1, 2])
def test_an_axis_that_the_volume_lacks_raises(axis):
    with pytest.raises(ValueError, match=f"no spatial dimension {axis}"):
        LayerwiseInferer(spatial_dim=axis)(torch.rand(1, 2, 9, 9), network("afn2", 2))


# --- tiles with a halo -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["same", "official"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", NETS)
@torch.no_grad()
def test_a_halo_of_the_receptive_radius_gives_the_whole_volume_and_one_voxel_less_does_not(name, dtype, padding):
    torch.manual_seed(3)
    net = network(name, 2, dtype, padding=padding)
    volume = torch.randn(1, 2, 110, 60, dtype=dtype)
    whole = net(F.pad(volume, [net.crop] * 4))
    radius = net.receptive_radius
    for halo in (None, radius, radius + 3):
        assert_near(HaloInferer(tile=(20, 30), halo=halo)(volume, net), whole)
    if radius - 1 >= net.crop:
        assert (HaloInferer(tile=20, halo=radius - 1)(volume, net) - whole).abs().max() > 1e-3


@torch.no_grad()
def test_a_tile_of_47_and_a_halo_of_14_is_the_prediction_of_the_authors():
    net = network("afn2", 2, torch.float64, padding="official")
    volume = torch.randn(1, 2, 100, 60, dtype=torch.float64)
    padded = F.pad(volume, [14] * 4)
    expected = torch.zeros(1, 3, 100, 60, dtype=torch.float64)
    for top in (0, 47, 94):
        for left in (0, 47):
            tile = net(padded[:, :, top : top + 75, left : left + 75])
            expected[:, :, top : top + 47, left : left + 47] = tile
    assert_near(HaloInferer(tile=47, halo=14)(volume, net), expected)
    assert (expected - net(padded)).abs().max() > 1e-3


@torch.no_grad()
def test_a_stock_sliding_window_differs_from_the_whole_volume_and_rescales_what_crops():
    net = network("basic", 2)
    volume = torch.randn(1, 2, 90, 70)
    stock = SlidingWindowInferer(roi_size=48, overlap=0.5)
    assert (stock(volume, net) - net(volume)).abs().max() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert stock(volume, network("basic", 2, padding="official")).shape != (1, 3, 90, 70)


@given(
    size=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    tile=st.integers(1, 9),
    padding=st.sampled_from(["same", "official"]),
)
@settings(max_examples=20, deadline=None)
@torch.no_grad()
def test_tiles_of_any_side_cover_a_volume_of_any_size(size, tile, padding):
    dims = len(size)
    net = AFNet(dims, 2, 3, n_autofocus=1, channels=(4, 4, 4, 4), padding=padding).double().eval()
    volume = torch.randn(2, 2, *size, dtype=torch.float64)
    tile = max(tile, max(size) // 2)
    assert_near(HaloInferer(tile)(volume, net), net(F.pad(volume, [net.crop] * (2 * dims))))


def test_a_halo_inferer_passes_arguments_and_gradients_on():
    volume = torch.rand(1, 1, 6, 5, requires_grad=True)
    output = HaloInferer(tile=4, halo=1)(volume, lambda x, scale, shift: scale * x + shift, 2.0, shift=1.0)
    torch.testing.assert_close(output, 2 * volume + 1)
    output.sum().backward()
    torch.testing.assert_close(volume.grad, torch.full_like(volume, 2.0))


def test_bad_tiles_and_halos_raise():
    for tile in (0, (4, 0)):
        with pytest.raises(ValueError, match="tile must be at least 1"):
            HaloInferer(tile)
    with pytest.raises(ValueError, match=r"halo must be at least 14.*got 13"):
        HaloInferer(8, halo=13)(torch.rand(1, 2, 40, 40), network("basic", 2, padding="official"))
    with pytest.raises(ValueError, match="halo must be given"):
        HaloInferer(8)(torch.rand(1, 2, 9, 9), SimpleInferer())
