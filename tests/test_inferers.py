# SPDX-License-Identifier: Apache-2.0
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SliceInferer, SlidingWindowInferer
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from monai_attn.inferers import BF16Inferer, HaloInferer, SliceBatchInferer
from monai_attn.nets import AFNet

from .conftest import trained

NARROW = (4, 4, 6, 6, 6, 6, 6, 6)


def afnet(n: int, padding: str = "same", dims: int = 2, **options) -> AFNet:
    """In double precision, so that the border of its field is seen."""
    net = trained(AFNet(dims, 2, 3, n_autofocus=n, padding=padding, **{"channels": NARROW, **options})).double()
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.mul_(0.2)
    return net


def assert_near(output: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = 1e-12 * float(expected.abs().max().clamp(min=1))
    torch.testing.assert_close(output, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("inferer", [SliceBatchInferer(), HaloInferer(tile=4, halo=1)], ids=["slices", "halo"])
def test_a_meta_tensor_keeps_its_meta_data_and_the_network_sees_plain_tensors_and_all_arguments(inferer):
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(torch.randn(1, 1, 4, 5, 6), affine=affine, meta={"filename_or_obj": "case.nii"})
    seen = set()

    def network(x: torch.Tensor, scale: int, *, classes: int) -> torch.Tensor:
        seen.add(type(x))
        return (scale * x).half().repeat_interleave(classes, dim=1)

    output = inferer(volume, network, 2, classes=3)
    assert seen == {torch.Tensor}
    assert isinstance(output, MetaTensor)
    assert output.meta["filename_or_obj"] == "case.nii"
    assert torch.equal(output.affine, affine)
    assert output.dtype == torch.float16
    assert torch.equal(output.as_tensor(), (2 * volume.as_tensor()).half().repeat(1, 3, 1, 1, 1))
    assert type(inferer(volume.as_tensor(), network, 2, classes=3)) is torch.Tensor


@pytest.mark.parametrize("inferer", [SliceBatchInferer(1, 2), HaloInferer(tile=4, halo=1)], ids=["slices", "halo"])
def test_gradients_flow_through_an_inferer(inferer):
    volume = torch.rand(1, 1, 3, 6, 5, requires_grad=True)
    inferer(volume, nn.Identity().eval()).square().sum().backward()
    torch.testing.assert_close(volume.grad, 2 * volume.detach())


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_output_equals_the_network_on_each_slice_alone(axis, batch_size):
    network = nn.Conv2d(2, 3, 3, padding=1).double()
    volumes = torch.randn(2, 2, 5, 6, 7, dtype=torch.float64)
    output = SliceBatchInferer(axis, batch_size)(volumes, network)
    assert output.is_contiguous()
    alone = torch.stack([network(piece) for piece in volumes.unbind(axis + 2)], dim=axis + 2)
    torch.testing.assert_close(output, alone, atol=1e-12, rtol=0)
    size = [side for index, side in enumerate((5, 6, 7)) if index != axis]
    theirs = SliceInferer(roi_size=size, spatial_dim=axis, sw_batch_size=3)(volumes, network)
    torch.testing.assert_close(output, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("batch_size", "calls"), [(1, [1] * 14), (4, [4, 3, 4, 3]), (7, [7, 7]), (100, [7, 7])])
def test_the_network_sees_at_most_batch_size_slices_at_once(batch_size, calls):
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return x

    volumes = torch.randn(2, 3, 5, 6, 7)
    assert torch.equal(SliceBatchInferer(2, batch_size)(volumes, network), volumes)
    assert seen == [(number, 3, 5, 6) for number in calls]


@pytest.mark.parametrize("axis", [0, 2])
def test_there_is_one_tensor_of_the_size_of_the_output(axis):
    made = []

    class Note(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and result.numel() >= 4 * 6 * 8 * 10:
                made.append(result.untyped_storage().data_ptr())
            return result

    with Note():
        output = SliceBatchInferer(axis, 2)(torch.randn(1, 1, 6, 8, 10), lambda x: x.repeat(1, 4, 1, 1))
    assert set(made) == {output.untyped_storage().data_ptr()}


@pytest.mark.parametrize(("n", "padding"), [(0, "same"), (0, "official"), (2, "same"), (2, "official")])
@torch.no_grad()
def test_a_halo_of_the_receptive_radius_gives_the_whole_volume_and_one_voxel_less_does_not(n, padding):
    net = afnet(n, padding)
    volume = torch.randn(1, 2, 90, 45, dtype=torch.float64)
    whole = net(F.pad(volume, [net.crop] * 4))
    radius = net.receptive_radius
    for halo in (None, radius + 3):
        assert_near(HaloInferer(tile=(20, 30), halo=halo)(volume, net), whole)
    if radius - 1 >= net.crop:
        assert (HaloInferer(tile=20, halo=radius - 1)(volume, net) - whole).abs().max() > 1e-3


@torch.no_grad()
def test_a_tile_of_47_and_a_halo_of_14_is_the_prediction_of_the_authors():
    net = afnet(2, "official")
    volume = torch.randn(1, 2, 100, 60, dtype=torch.float64)
    padded = F.pad(volume, [14] * 4)
    expected = torch.zeros(1, 3, 100, 60, dtype=torch.float64)
    for top in (53, 0, 47):  # the last window is as large as the others, and gives what they do not
        for left in (13, 0):
            tile = net(padded[:, :, top : top + 75, left : left + 75])
            expected[:, :, top : top + 47, left : left + 47] = tile
    assert_near(HaloInferer(tile=47, halo=14)(volume, net), expected)
    assert (expected - net(padded)).abs().max() > 1e-3


def test_monais_sliding_window_rescales_what_crops():
    """Why there is an inferer of our own for ``padding="official"``; it may go when this fails."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        output = SlidingWindowInferer(48, overlap=0.5)(torch.randn(1, 2, 60, 50).double(), afnet(0, "official"))
    assert output.shape != (1, 3, 60, 50)


@given(
    size=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    tile=st.integers(1, 9),
    padding=st.sampled_from(["same", "official"]),
)
@settings(max_examples=8, deadline=None)
@torch.no_grad()
def test_tiles_of_any_side_cover_a_volume_of_any_size(size, tile, padding):
    net = afnet(1, padding, len(size), channels=(2, 2, 2, 2))
    volume = torch.randn(2, 2, *size, dtype=torch.float64)
    whole = net(F.pad(volume, [net.crop] * (2 * len(size))))
    assert_near(HaloInferer(max(tile, max(size) // 2))(volume, net), whole)


@torch.no_grad()
def test_the_margins_are_found_in_a_network_wrapped_for_several_devices(tmp_path):
    net = afnet(1, "official")
    volume = torch.randn(1, 2, 20, 17, dtype=torch.float64)
    expected = HaloInferer(8)(volume, net)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        for wrapped in (nn.DataParallel(net), nn.parallel.DistributedDataParallel(net).eval()):
            assert_near(HaloInferer(8)(volume, wrapped), expected)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SliceBatchInferer(batch_size=0), "expected batch_size >= 1 .* got 0"),
        (lambda: BF16Inferer(enabled="no"), "must be True, False or None, got 'no'"),
        (lambda: SliceBatchInferer(spatial_dim=-1), "spatial_dim 0, 1 or 2, got 16, -1"),
        (lambda: SliceBatchInferer()(torch.rand(1, 1, 4, 5), nn.Identity()), r"\(B, C, H, W, D\).*\(1, 1, 4, 5\)"),
        (lambda: HaloInferer(8)(torch.rand(1, 2, 20, 17), afnet(0).train()), r"training mode.*eval\(\)"),
        (lambda: HaloInferer(0), "tile must be at least 1"),
        (lambda: HaloInferer((4, 0)), "tile must be at least 1"),
        (
            lambda: HaloInferer(8, 13)(torch.rand(1, 2, 40, 40), afnet(0, "official")),
            "halo must be at least 14.*got 13",
        ),
        (lambda: HaloInferer(8)(torch.rand(1, 2, 9, 9), SimpleInferer()), "halo must be given"),
    ],
)
def test_what_cannot_be_inferred_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_in_bf16_all_outputs_are_float32_and_near_those_in_float32():
    net = nn.Conv2d(3, 4, 3)
    image = MetaTensor(torch.rand(2, 3, 9, 9), meta={"filename_or_obj": "case.nii"})
    seen = []

    def network(x: torch.Tensor, scale: float, *, shift: float) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(net(x))
        return seen[-1] * scale + shift, seen[-1]

    inferer = BF16Inferer(enabled=True)
    outputs = inferer(image, network, 2.0, shift=1.0)
    assert seen[0].dtype == torch.bfloat16
    for output, expected in zip(outputs, network(image, 2.0, shift=1.0)):
        assert isinstance(output, MetaTensor)
        assert output.dtype == torch.float32
        assert not torch.equal(output, expected)
        torch.testing.assert_close(output, expected, rtol=0.02, atol=0.02)
    outputs[0].sum().backward()
    assert net.weight.grad.dtype == torch.float32
    assert net.weight.grad.abs().sum() > 0


def test_bf16_goes_through_another_inferer_and_can_be_left_out():
    net, volume = trained(nn.Conv2d(1, 2, 3, padding=1)), torch.rand(1, 1, 4, 6, 5)
    expected = SliceBatchInferer(1)(volume, net)
    output = BF16Inferer(SliceBatchInferer(1), enabled=True)(volume, net)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), expected, rtol=0.02, atol=0.02)
    assert torch.equal(BF16Inferer(SliceBatchInferer(1), enabled=False)(volume, net), expected)
    crops, image = afnet(1, "official").float(), torch.rand(1, 2, 40, 40)
    output = BF16Inferer(HaloInferer(12, 30), enabled=True)(image, crops)  # which looks at the network
    torch.testing.assert_close(output.float(), HaloInferer(12, 30)(image, crops), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("capabilities", [{"amx_bf16": True}, {"avx512_bf16": True}, {"amx_bf16": False}, {}, None])
def test_bf16_is_used_where_the_cpu_has_instructions_for_it(monkeypatch, capabilities):
    if capabilities is None:  # an older torch
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert BF16Inferer().enabled is any((capabilities or {}).values())
