# SPDX-License-Identifier: Apache-2.0
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_attn.blocks import ChannelSE, ChannelSpatialSE, Gate, SpatialSE
from monai_attn.nets import ReLayNet, SCSEFCDenseNet, SCSESDNet, SCSEUNet

from ..conftest import count

NETS = {"unet": SCSEUNet, "sdnet": SCSESDNet, "fcdensenet": SCSEFCDenseNet, "relaynet": ReLayNet}
CLASSES = {"unet": 28, "sdnet": 28, "fcdensenet": 28, "relaynet": 10}
DEPTH = {"unet": 4, "sdnet": 3, "fcdensenet": 4, "relaynet": 3}
AGGREGATIONS = ["max", "add", "mul", "mul_gate", "concat"]
POSITIONS = ["P1", "P2", "P3", "P4", "P5", "P6"]
SKIPS = ["recalibrated", "raw"]

each_network = pytest.mark.parametrize("name", NETS)


def small(name: str, dims: int = 2, **options) -> nn.Module:
    return NETS[name](dims, 1, 4, **{"features": 4, **options}).eval()


def number(name: str, **options) -> int:
    """Number of parameters of the paper's network, built without memory."""
    with torch.device("meta"):
        return count(NETS[name](2, 1, options.pop("out_channels", CLASSES[name]), **options))


BASE = {"unet": 2_154_972, "sdnet": 1_812_636, "fcdensenet": 3_200_674, "relaynet": 777_482}

# parameters that squeeze & excitation adds at P1 … P6, with and without biases
FOUR_LEVELS = {
    "cse": [(16768, 16384), (16768, 16384), (4192, 4096), (826, 784), (33536, 32768), (38554, 37648)],
    "sse": [(260, 256), (260, 256), (65, 64), (29, 28), (520, 512), (614, 604)],
    "scse": [(17028, 16640), (17028, 16640), (4257, 4160), (855, 812), (34056, 33280), (39168, 38252)],
}
ADDED = {
    "unet": FOUR_LEVELS,
    "fcdensenet": FOUR_LEVELS,
    "sdnet": {
        "cse": [(12576, 12288), (12576, 12288), (4192, 4096), (826, 784), (25152, 24576), (30170, 29456)],
        "sse": [(195, 192), (195, 192), (65, 64), (29, 28), (390, 384), (484, 476)],
        "scse": [(12771, 12480), (12771, 12480), (4257, 4160), (855, 812), (25542, 24960), (30654, 29932)],
    },
    "relaynet": {
        "cse": [(12576, 12288), (12576, 12288), (4192, 4096), (115, 100), (25152, 24576), (29459, 28772)],
        "sse": [(195, 192), (195, 192), (65, 64), (11, 10), (390, 384), (466, 458)],
        "scse": [(12771, 12480), (12771, 12480), (4257, 4160), (126, 110), (25542, 24960), (29925, 29230)],
    },
}


@each_network
def test_a_network_has_the_number_of_parameters_of_table_1_and_se_adds_that_of_its_formula(name):
    assert number(name, se=None, positions="P6") == BASE[name]
    for se, expected in ADDED[name].items():
        for position, both in zip(POSITIONS, expected, strict=True):
            found = [number(name, se=(se, {"bias": bias}), positions=position) - BASE[name] for bias in (True, False)]
            assert found == list(both), (se, position)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("unet", {"kernel_size": 3}, 777_692),
        ("unet", {"upsample": "linear"}, 2_154_972),
        ("sdnet", {"depth": 4}, 2_415_132),
        ("fcdensenet", {"bottleneck": "conv5x5_bn"}, 3_299_106),
        ("fcdensenet", {"bottleneck": "dense", "act": "prelu"}, 3_516_971),
        ("fcdensenet", {"bottleneck": "dense", "act": "relu"}, 3_516_962),
        ("relaynet", {"kernel_size": (7, 3)}, 777_482),
        ("relaynet", {"kernel_size": (3, 7), "act": "prelu", "out_channels": 9}, 777_424),
    ],
)
def test_variants_of_the_authors_have_their_number_of_parameters(name, options, expected):
    assert number(name, se=None, **options) == expected


def test_convolution_weights_of_fcdensenet_alone_are_those_of_table_1():
    with torch.device("meta"):
        network = SCSEFCDenseNet(2, 1, 28, se=None)
    assert sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d)) == 3_191_744


@each_network
def test_reduction_sets_the_number_of_added_parameters(name):
    four_levels, three_levels = (34_056, 17_544, 9_288, 5_160), (25_542, 13_158, 6_966, 3_870)
    expected = four_levels if DEPTH[name] == 4 else three_levels
    assert [number(name, reduction=reduction) - BASE[name] for reduction in (2, 4, 8, 16)] == list(expected)
    assert number(name, se=("scse", {"reduction": 8})) == number(name, reduction=8)


@pytest.mark.parametrize(
    ("name", "recalibrated", "raw"),
    [
        ("unet", 3_317_220, 2_907_620),
        ("sdnet", 3_445_602, 2_843_490),
        ("fcdensenet", 5_333_418, 4_496_298),
        ("relaynet", 1_491_792, 1_233_744),
    ],
)
def test_only_concat_changes_the_number_of_parameters_by_its_doubled_inputs(name, recalibrated, raw):
    assert number(name, aggregation="concat", skip="recalibrated") == recalibrated
    assert number(name, aggregation="concat", skip="raw") == raw
    assert {number(name, aggregation=kind, skip=skip) for kind in AGGREGATIONS[:4] for skip in SKIPS} == {number(name)}
    for se in ("cse", "sse", None):  # they have one map
        assert number(name, se=se, positions="P6", aggregation="concat") == number(name, se=se, positions="P6")


PLACES = {"P1": (1, 0), "P2": (1, 0), "P3": (0, 1), "P4": (0, 1), "P5": (2, 0), "P6": (2, 2)}  # per level, once


@pytest.mark.parametrize(
    ("name", "se", "position"),
    [*(("sdnet", "scse", p) for p in POSITIONS), ("unet", "cse", "P6"), ("fcdensenet", "sse", "P6")],
)
def test_every_se_module_is_called_once_and_no_two_places_share_one(name, se, position):
    network = small(name, se=se, positions=position)
    calls: Counter[str] = Counter()
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, Gate):
            module.register_forward_hook(lambda *_, path=path: calls.update([path]))
    kinds = {"scse": ChannelSpatialSE, "cse": ChannelSE, "sse": SpatialSE}
    modules = [module for _, module in network.named_modules(remove_duplicate=False)]
    blocks = [module for module in modules if isinstance(module, kinds[se])]
    network(torch.rand(1, 1, 16, 16))
    per_level, once = PLACES[position]
    places = per_level * DEPTH[name] + once
    assert len(blocks) == len({id(block) for block in blocks}) == places
    assert len(calls) == places * (2 if se == "scse" else 1)
    assert set(calls.values()) == {1}


def test_relaynet_has_kernels_seven_high_and_three_wide():
    for dims, kernel in ((1, (7,)), (2, (7, 3)), (3, (7, 3, 3))):
        network = small("relaynet", dims)
        kernels = {tuple(stage[0].conv.kernel_size) for stage in [*network.encoders, *network.decoders]}
        assert kernels == {kernel}


@pytest.mark.parametrize("skip", SKIPS)
@each_network
def test_skip_passes_the_recalibrated_or_the_raw_map_and_the_way_down_always_the_recalibrated(name, skip):
    network = small(name, skip=skip)
    seen: dict[str, torch.Tensor] = {}
    for key, module in {"u": network.encoders[0], "se": network.encoder_se[0]}.items():
        module.register_forward_hook(lambda _m, _i, output, key=key: seen.update({key: output}))
    for key, module in {"below": network.encoders[1], "last": network.decoders[-1]}.items():
        module.register_forward_pre_hook(lambda _m, inputs, key=key: seen.update({key: inputs[0]}))
    network(torch.randn(1, 1, 36, 45))
    assert not torch.equal(seen["u"], seen["se"])
    assert torch.equal(seen["last"][:, :4], seen["se" if skip == "recalibrated" else "u"])
    assert torch.equal(seen["below"], F.max_pool2d(seen["se"], 2, ceil_mode=True))


@pytest.mark.parametrize("name", ["sdnet", "fcdensenet"])
def test_concat_unpools_with_the_indices_of_the_undoubled_features(name):
    network = small(name, aggregation="concat", depth=1)
    seen: dict[str, torch.Tensor] = {}
    network.encoders[0].register_forward_hook(lambda _m, _i, output: seen.update(u=output))
    network.bottleneck.register_forward_hook(lambda _m, _i, output: seen.update(b=output))
    network.decoders[0].register_forward_pre_hook(lambda _m, inputs: seen.update(joined=inputs[0]))
    network(torch.randn(1, 1, 8, 6))
    _, indices = F.max_pool2d(seen["u"], 2, return_indices=True)
    assert seen["joined"].shape[1] == 12
    assert torch.equal(seen["joined"][:, 8:], F.max_unpool2d(seen["b"], indices, 2))


@each_network
def test_p4_recalibrates_the_logits_over_the_classes(name):
    plain, network = small(name, se=None), small(name, positions="P4")
    assert network.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    x = torch.randn(1, 1, 9, 10)
    assert network.classifier_se.channel.fc1.in_features == 4
    torch.testing.assert_close(network(x), network.classifier_se(plain(x)), atol=0, rtol=0)


def test_a_network_whose_gates_stay_at_one_trains_as_the_network_without():
    plain, gated = small("unet", se=None), small("unet", se=("scse", {"gate_bias": 50.0}))
    gated.load_state_dict(plain.state_dict(), strict=False)
    images, labels = torch.rand(4, 2, 1, 16, 16), torch.randint(4, (4, 2, 16, 16))
    losses = []
    for network in (plain, gated):
        optimizer = torch.optim.SGD(network.train().parameters(), lr=0.05)
        for x, y in zip(images, labels):
            optimizer.zero_grad()
            loss = F.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    assert torch.equal(torch.stack(losses[:4]), torch.stack(losses[4:]))


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("aggregation", ["max", "concat"])
def test_unet_equals_a_plain_restatement_of_figure_2(aggregation, skip):
    network = small("unet", depth=2, aggregation=aggregation, skip=skip).double()
    x = image = torch.randn(2, 1, 13, 10, dtype=torch.float64)
    enc, dec = network.encoders, network.decoders
    u1 = enc[0](x)
    r1 = network.encoder_se[0](u1)
    u2 = enc[1](F.max_pool2d(r1, 2, ceil_mode=True))
    r2 = network.encoder_se[1](u2)
    bottom = network.bottleneck(F.max_pool2d(r2, 2, ceil_mode=True))
    skips = (r1, r2) if skip == "recalibrated" else (u1, u2)
    d1 = network.decoder_se[0](dec[0](torch.cat([skips[1], F.interpolate(bottom, size=u2.shape[2:])], dim=1)))
    d2 = network.decoder_se[1](dec[1](torch.cat([skips[0], F.interpolate(d1, size=u1.shape[2:])], dim=1)))
    torch.testing.assert_close(network(image), network.classifier(d2), atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sdnet", {"positions": "P7"}, "P5"),
        ("sdnet", {"se": "SCSE"}, "scse"),
        ("sdnet", {"skip": "config1"}, "recalibrated"),
        ("sdnet", {"aggregation": "sum"}, "max"),
        ("relaynet", {"depth": 0}, "at least 1, got 0"),
        ("sdnet", {"reduction": 9}, "got 9"),
        ("unet", {"upsample": "cubic"}, "nearest"),
        ("fcdensenet", {"bottleneck": "none"}, "conv1x1"),
        ("sdnet", {"aggregation": "concat", "positions": "P4"}, "concat.*P4.*4 classes"),
        ("unet", {"aggregation": "concat", "positions": "P6"}, "concat.*P6.*4 classes"),
    ],
)
def test_a_bad_option_raises(name, options, message):
    with pytest.raises(ValueError, match=message):
        small(name, **{"features": 8, **options})


def test_excitation_of_a_single_class_needs_sse():
    for se in ("cse", "scse"):
        with pytest.raises(ValueError, match="se='sse'"):
            SCSEUNet(2, 1, 1, features=4, se=se, positions="P6")
    network = SCSEUNet(2, 1, 1, features=4, se="sse", positions="P6").eval()
    assert network(torch.rand(1, 1, 9, 8)).shape == (1, 1, 9, 8)
