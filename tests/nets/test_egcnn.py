# SPDX-License-Identifier: Apache-2.0
"""EG-CNN around a few networks; tests/adapt/test_networks.py has all that it takes, and the compilers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import load_decathlon_datalist
from monai.losses import DiceLoss
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, UNet, VNet
from monai.transforms import Compose, LoadImaged, Resized, ScaleIntensityRanged
from torch import nn

from monai_attn.adapt import FeatureExtractor, Places
from monai_attn.blocks import Gate
from monai_attn.losses import EGCNNLoss
from monai_attn.nets import EGCNN, AllOutputs
from monai_attn.visualize import capture_attention

STARTS = ["decoder", "bottleneck"]


def dynunet(dims: int, filters=(8, 16, 32, 64), strides=(1, 2, 2, 2), out_channels: int = 3) -> DynUNet:
    return DynUNet(dims, 1, out_channels, [3] * len(strides), strides, strides[1:], filters=filters)


# a small network for any number of dimensions, the side of an image, and the number of its levels
NETS = {
    "UNet": (lambda dims: UNet(dims, 1, 3, (8, 16, 32, 64), (2, 2, 2), num_res_units=1), 16, 3),
    "BasicUNet": (lambda dims: BasicUNet(dims, 1, 3, (8, 8, 16, 16, 32, 8)), 32, 5),
    "SegResNet": (lambda dims: SegResNet(dims, 8, 1, 3, blocks_down=(1, 1, 1, 1)), 16, 4),
}


def small(name: str = "SegResNet", dims: int = 2, **kwargs) -> EGCNN:
    return EGCNN(NETS[name][0](dims), **kwargs).eval()


def image(name: str = "SegResNet", dims: int = 2, batch: int = 1) -> torch.Tensor:
    return torch.rand(batch, 1, *[NETS[name][1]] * dims)


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def stir(network: EGCNN) -> EGCNN:
    """Replace what starts as an identity or as zero by random numbers."""
    for parameter in (network.fusion.weight, network.fusion.bias, *network.gates.parameters()):
        nn.init.normal_(parameter, std=0.3)
    return network


# --- exact numbers of parameters ---------------------------------------------------------------------------------

FUSION = (4 + 1) * 4 + 4
PAPER = {
    "UNet": (lambda: UNet(3, 1, 4, (16, 32, 64, 128, 256), (2,) * 4, num_res_units=2), 4_808_537, 107_925, 452_503),
    "BasicUNet": (lambda: BasicUNet(3, 1, 4), 5_749_476, 487_399, 1_864_681),
    "SegResNet 16": (lambda: SegResNet(3, 16, 1, 4), 4_700_948, 107_925, 452_503),
    "SegResNet 32": (lambda: SegResNet(3, 32, 1, 4), 18_796_068, 430_885, 1_808_167),
    "VNet": (lambda: VNet(3, 1, 4), 45_605_916, 682_135, 1_829_785),
    "DynUNet": (lambda: dynunet(3, (32, 64, 128, 256, 320), (1, 2, 2, 2, 2), 4), 16_543_716, 1_808_167, 5_938_601),
}


def residual(ci: int, co: int, taps: int) -> int:
    return 2 * ci + 2 * co + taps * ci * co + taps * co**2 + (ci != co) * ci * co


def edge_stream(first: int, finer: list[int], taps: int, maps: int | None, project: bool, edges: int) -> int:
    """The closed form: residual block and gate for each finer resolution, and the head."""
    total, channels = 0, first
    for width in finer:
        total += residual(channels, width, taps) + 2 * (width + 1) * (maps or width) + project * width**2
        channels = width
    return total + channels * edges + edges


@pytest.mark.parametrize("name", PAPER)
def test_the_edge_stream_adds_the_number_of_parameters_of_its_size(name):
    build, alone, *added = PAPER[name]
    with torch.device("meta"):
        net = build()
        assert count(net) == alone
        assert [count(EGCNN(net, start=start)) - alone - FUSION for start in STARTS] == added


@given(
    dims=st.integers(1, 3),
    widths=st.lists(st.integers(2, 20), min_size=4, max_size=6),
    classes=st.integers(1, 5),
    edges=st.integers(1, 3),
    maps=st.sampled_from([1, None]),
    project=st.booleans(),
    start=st.sampled_from(STARTS),
)
@settings(max_examples=5, deadline=None)
def test_random_widths_give_the_number_of_parameters_of_the_closed_form(
    dims, widths, classes, edges, maps, project, start
):
    with torch.device("meta"):
        net = UNet(dims, 1, classes, widths, (2,) * (len(widths) - 1), norm="batch")
        whole = EGCNN(net, edge_classes=edges, attention_channels=maps, project=project, start=start)
    levels = widths[:-1]
    first, finer = (levels[-2], levels[-3::-1]) if start == "decoder" else (levels[-1], levels[-2::-1])
    # an up path gives the width of the level it reaches
    fusion = (classes + edges + 1) * classes
    assert count(whole) - count(net) == edge_stream(first, finer, 3**dims, maps, project, edges) + fusion


@pytest.mark.parametrize(("start", "missing"), [("decoder", 2), ("bottleneck", 1)])
@pytest.mark.parametrize("name", NETS)
def test_a_gate_stands_at_every_resolution_finer_than_the_start_and_its_map_has_that_size(name, start, missing):
    network, x = small(name, start=start), image(name)
    with capture_attention(network) as gates:
        encoder, _, _ = network.main_stream(x)
        network(x)
    assert list(gates) == [f"gates.{level}.gate" for level in range(NETS[name][2] - missing)]
    assert [value.shape[2:] for value in gates.values()] == [m.shape[2:] for m in encoder[: len(gates)][::-1]]
    assert all(value.shape[1] == 1 and value.min() >= 0.5 and value.max() < 1 for value in gates.values())


# --- forward -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dims"), [("UNet", 2), ("BasicUNet", 3), ("SegResNet", 3)])
def test_around_a_network_it_starts_with_exactly_the_networks_output_and_keeps_its_state(name, dims):
    net, x = NETS[name][0](dims).eval(), image(name, dims)
    network = EGCNN(net, edge_classes=2, start="bottleneck").eval()
    segmentation, edges, main = network.forward_all(x)
    assert torch.equal(segmentation, net(x))
    assert torch.equal(main, segmentation)
    assert edges.shape == (1, 2, *x.shape[2:])
    kept = {key: value for key, value in network.state_dict().items() if key.startswith("main_stream.")}
    assert list(kept) == [f"main_stream.net.{key}" for key in net.state_dict()]
    assert all(torch.equal(*values) for values in zip(kept.values(), net.state_dict().values(), strict=True))


def restated(network: EGCNN, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Sec. 2.1 written out for two dimensions, with the network's weights."""
    encoder, decoder, z = network.main_stream(x)
    levels = len(encoder)
    bottleneck = len(network.gates) == levels - 1
    e, at = (encoder[-1], levels - 1) if bottleneck else (decoder[0], levels - 2)
    for block, gate in zip(network.blocks, network.gates):
        at -= 1
        m = encoder[at]
        first = F.conv2d(F.relu(block.before[0](e)), block.conv1.weight, padding=1)
        second = F.conv2d(F.relu(block.norm(first)), block.conv2.weight, padding=1)
        e = second + (e if isinstance(block.shortcut, nn.Identity) else F.conv2d(e, block.shortcut.weight))
        e = F.interpolate(e, size=m.shape[2:], mode="bilinear", align_corners=False)
        a = torch.sigmoid(F.relu(gate.edge_conv(e) + gate.main_conv(m)))
        e = gate.project(e * a + e)
    assert at == 0
    edges = F.interpolate(network.head(e), size=z.shape[2:], mode="bilinear", align_corners=False)
    return network.fusion(torch.cat([z, torch.sigmoid(edges)], dim=1)), edges, z


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", NETS)
def test_the_outputs_are_those_of_the_papers_text(name, start):
    network, x = stir(small(name, start=start)), image(name, batch=2)
    for ours, theirs in zip(network.forward_all(x), restated(network, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(network(x), network.forward_all(x)[0])
    assert torch.equal(network.edges(x), torch.sigmoid(network.forward_all(x)[1]))
    assert network.train()(x).shape == (2, 3, *x.shape[2:])


def test_anisotropic_strides_run():
    net = dynunet(3, strides=(1, (1, 2, 2), (1, 2, 2), 2)).eval()
    network, x = EGCNN(net, start="bottleneck").eval(), torch.rand(1, 1, 6, 16, 24)
    assert torch.equal(network(x), net(x))
    assert stir(network).forward_all(x)[1].shape == (1, 1, 6, 16, 24)


def test_a_scripted_network_survives_save_and_load_and_takes_other_sizes(tmp_path):
    network = stir(small("BasicUNet"))
    torch.jit.script(network).save(tmp_path / "network.ts")
    loaded = torch.jit.load(tmp_path / "network.ts")
    for size in ((32, 32), (33, 47)):
        x = torch.rand(2, 1, *size)
        for ours, theirs in zip(loaded.forward_all(x), network.forward_all(x), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
            assert ours.shape[2:] == size


# --- gradients ---------------------------------------------------------------------------------------------------


def losses(network: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice of both streams on a disc and its rim."""
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    distance = ((rows - 15) ** 2 + (columns - 17) ** 2).sqrt()
    disc, rim = ((distance < limit)[None, None].float() for limit in (9, 10))
    image = disc + 0.1 * torch.rand(2, 1, 32, 32)
    segmentation, edges, *_ = network(image)
    semantic = DiceLoss(softmax=True, to_onehot_y=True)(segmentation, disc.expand(2, 1, 32, 32))
    return semantic, DiceLoss(sigmoid=True)(edges, (rim - disc).expand(2, 1, 32, 32))


def without_gradient(network: nn.Module) -> list[str]:
    return [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("UNet", {"start": "bottleneck"}),
        ("SegResNet", {"gate": "sigmoid", "attention_channels": None, "project": False}),
    ],
)
def test_the_total_loss_reaches_the_fusion_and_every_parameter_of_the_edge_stream(name, options):
    network = small(name, **options).train()
    sum(losses(AllOutputs(network))).backward()
    assert [key for key in without_gradient(network) if not key.startswith("main_stream.")] == []
    assert all(value.grad.isfinite().all() for value in network.parameters())


def test_the_fusion_learns_from_the_fused_logits_only():
    network = small().train()

    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return network.main_stream(x)[2], network.forward_all(x)[1]

    sum(losses(both)).backward()
    assert network.fusion.weight.grad is None
    network.zero_grad()
    losses(AllOutputs(network))[0].backward()
    assert network.fusion.weight.grad[:, -1].any()


def test_at_construction_the_semantic_loss_does_not_train_the_edges_and_after_a_step_it_does():
    network = small().train()
    losses(AllOutputs(network))[0].backward()
    assert {"head.weight", "blocks.0.conv1.weight"} <= set(without_gradient(network))
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    network.zero_grad()
    losses(AllOutputs(network))[0].backward()
    assert without_gradient(network) == []


def test_the_wrapper_for_training_shares_weights_and_mode_and_gives_the_output_of_a_network_without_edges():
    network = small().train()
    wrapper = AllOutputs(network)
    assert wrapper.net is network
    assert list(wrapper.state_dict()) == [f"net.{key}" for key in network.state_dict()]
    wrapper.eval()
    assert not network.training
    x, plain = image(), NETS["SegResNet"][0](2).eval()
    assert all(torch.equal(a, b) for a, b in zip(wrapper(x), network.forward_all(x), strict=True))
    assert torch.equal(AllOutputs(plain)(x), plain(x))


def test_several_processes_find_every_parameter_used(tmp_path):
    network = small("UNet").train()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapper = nn.parallel.DistributedDataParallel(AllOutputs(network))
        for _ in range(2):  # the second pass fails if the first left a parameter without gradient
            sum(losses(wrapper)).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert without_gradient(network) == []


# --- options -----------------------------------------------------------------------------------------------------


def test_groups_divide_the_channels_of_both_norms_of_a_block():
    net = UNet(2, 1, 3, (6, 12, 24, 32, 32), (2,) * 4)
    groups = [[m.num_groups for m in block.modules() if isinstance(m, nn.GroupNorm)] for block in EGCNN(net).blocks]
    assert groups == [[4, 4], [2, 2]]
    four = EGCNN(net, norm=("group", {"num_groups": 4, "eps": 1e-3})).blocks[0].norm
    assert (four.num_groups, four.eps) == (4, 1e-3)
    assert EGCNN(net, norm="group").blocks[0].norm.num_groups == 4


@pytest.mark.parametrize(
    ("norm", "kind"), [("instance", nn.InstanceNorm2d), (("batch", {"eps": 1e-3}), nn.BatchNorm2d)]
)
def test_options_of_norm_and_gate_reach_every_level(norm, kind):
    network = small(norm=norm, gate="sigmoid", attention_channels=None, project=False)
    assert all(isinstance(block.norm, kind) for block in network.blocks)
    for gate in network.gates:
        assert isinstance(gate.act, nn.Identity)
        assert isinstance(gate.project, nn.Identity)
        assert gate.edge_conv.out_channels == gate.edge_conv.in_channels
        assert isinstance(gate.gate, Gate)


# --- other networks and bad arguments ----------------------------------------------------------------------------


def test_an_extractor_is_taken_in_place_of_a_network_and_without_decoders_it_starts_at_the_bottleneck_only():
    net, x = SegResNet(2, 8, 1, 3).eval(), image()
    levels = [f"down_layers.{i}" for i in range(3)]
    extractor = FeatureExtractor(net, Places(levels, [], "down_layers.3", "conv_final", divisor=8))
    network = EGCNN(extractor, start="bottleneck").eval()
    assert network.main_stream is extractor
    assert len(network.gates) == 3
    assert torch.equal(network(x), net(x))
    with pytest.raises(ValueError, match=r"start='decoder'.*SegResNet has 4 levels and 0 decoder features"):
        EGCNN(extractor)


@pytest.mark.parametrize(
    ("start", "channels", "needs"),
    [
        ("decoder", (8, 16), "3 encoder levels and a decoder feature, UNet has 1 levels"),
        ("decoder", (8, 16, 32), "3 encoder levels .*UNet has 2 levels and 1 decoder features.*bottleneck"),
        ("bottleneck", (8, 16), "2 encoder levels, UNet has 1 levels and 0 decoder features; use a deeper network."),
    ],
)
def test_too_shallow_a_network_raises_and_names_start_and_the_levels_and_one_level_more_builds(start, channels, needs):
    def build(*channels: int) -> EGCNN:
        return EGCNN(UNet(2, 1, 3, channels, (2,) * (len(channels) - 1)), start=start)

    with pytest.raises(ValueError, match=f"start='{start}' needs at least {needs}"):
        build(*channels)
    assert len(build(8, 16, 32, 64).gates) == (1 if start == "decoder" else 2)


def test_an_unknown_option_or_network_raises_and_says_what_to_give():
    for option, value in (("start", "encoder"), ("gate", "softmax"), ("attention_channels", 7)):
        with pytest.raises(ValueError, match=str(value)):
            small(**{option: value})
    with pytest.raises(TypeError, match=r"the places of Linear are not known.*EGCNN\(FeatureExtractor\("):
        EGCNN(nn.Linear(3, 3))


def test_a_network_for_pictures_learns_to_see_real_kidneys_and_their_edges(real_data):
    items = load_decathlon_datalist(str(real_data("kits19_2d") / "dataset.json"), data_list_key="training")[:2]
    load = Compose(
        [
            LoadImaged(["image", "label"], ensure_channel_first=True),
            ScaleIntensityRanged("image", 0, 255, -1, 1),
            Resized(["image", "label"], (64, 64), mode=["bilinear", "nearest"]),
        ]
    )
    cases = [load(item) for item in items]
    image, label = (torch.stack([case[key].as_tensor() for case in cases]) for key in ("image", "label"))
    network = EGCNN(SegResNet(2, init_filters=8, in_channels=1, out_channels=3))
    train_network, loss = AllOutputs(network), EGCNNLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        loss(train_network(image), label).backward()
        optimizer.step()
        history.append({name: float(value) for name, value in loss.terms.items()})
    assert history[-1]["semantic"] < 0.9 * history[0]["semantic"]
    assert history[-1]["edge_dice"] < 0.6 * history[0]["edge_dice"]


def test_all_outputs_of_a_network_that_is_wrapped_already_are_refused():
    """It would give the segmentation alone, and the edge stream would learn nothing."""
    network = EGCNN(SegResNet(spatial_dims=2, init_filters=8))
    with pytest.raises(ValueError, match="then AllOutputs in DataParallel"):
        AllOutputs(torch.nn.DataParallel(network))
