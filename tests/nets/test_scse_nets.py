# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections import Counter

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_attn.blocks import ChannelSE, ChannelSpatialSE, Gate, SpatialSE
from monai_attn.blocks.stages import MaxPoolWithIndices
from monai_attn.nets import ReLayNet, SCSEFCDenseNet, SCSESDNet, SCSEUNet

NETS = {"unet": SCSEUNet, "sdnet": SCSESDNet, "fcdensenet": SCSEFCDenseNet, "relaynet": ReLayNet}
CLASSES = {"unet": 28, "sdnet": 28, "fcdensenet": 28, "relaynet": 10}
DEPTH = {"unet": 4, "sdnet": 3, "fcdensenet": 4, "relaynet": 3}
AGGREGATIONS = ["max", "add", "mul", "mul_gate", "concat"]
POSITIONS = ["P1", "P2", "P3", "P4", "P5", "P6"]
SKIPS = ["recalibrated", "raw"]
ON_THE_CLASSES = ("P4", "P6")
SE_BLOCKS = (ChannelSpatialSE, ChannelSE, SpatialSE)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def small(name: str, dims: int = 2, **kwargs) -> nn.Module:
    return NETS[name](dims, 1, 4, **{"features": 4, **kwargs}).eval()


def count(name: str, **kwargs) -> int:
    """Number of parameters of the paper's network, built without memory."""
    with torch.device("meta"):
        network = NETS[name](2, 1, kwargs.pop("out_channels", CLASSES[name]), **kwargs)
    return sum(parameter.numel() for parameter in network.parameters())


# --- exact numbers of parameters ---------------------------------------------------------------------------------

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


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", NETS)
def test_without_se_a_network_has_the_number_of_parameters_of_table_1_at_any_position(name, position):
    assert count(name, se=None, positions=position) == BASE[name]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("unet", {"kernel_size": 3}, 777_692),
        ("unet", {"upsample": "linear"}, 2_154_972),
        ("sdnet", {"depth": 4}, 2_415_132),
        ("fcdensenet", {"bottleneck": "conv1x1"}, 3_200_674),
        ("fcdensenet", {"bottleneck": "conv5x5_bn"}, 3_299_106),
        ("fcdensenet", {"bottleneck": "dense", "act": "prelu"}, 3_516_971),
        ("fcdensenet", {"bottleneck": "dense", "act": "relu"}, 3_516_962),
        ("relaynet", {"kernel_size": (7, 3)}, 777_482),
        ("relaynet", {"kernel_size": (3, 7), "act": "prelu", "out_channels": 9}, 777_424),
    ],
)
def test_variants_of_the_authors_have_their_number_of_parameters(name, options, expected):
    assert count(name, se=None, **options) == expected


def test_convolution_weights_of_fcdensenet_alone_are_those_of_table_1():
    with torch.device("meta"):
        network = SCSEFCDenseNet(2, 1, 28, se=None)
    assert sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d)) == 3_191_744


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("se", ["cse", "sse", "scse"])
@pytest.mark.parametrize("name", NETS)
def test_se_adds_the_number_of_parameters_of_its_formula(name, se, position, bias):
    expected = ADDED[name][se][POSITIONS.index(position)][0 if bias else 1]
    assert count(name, se=(se, {"bias": bias}), positions=position) - BASE[name] == expected


def test_the_arguments_of_se_may_stand_beside_its_name():
    by_name = count("sdnet", se=("scse", {"reduction": 4, "aggregation": "concat"}))
    assert by_name == count("sdnet", reduction=4, aggregation="concat")


@pytest.mark.parametrize(
    ("reduction", "four_levels", "three_levels"),
    [(2, 34_056, 25_542), (4, 17_544, 13_158), (8, 9_288, 6_966), (16, 5_160, 3_870)],
)
@pytest.mark.parametrize("name", NETS)
def test_reduction_sets_the_number_of_added_parameters(name, reduction, four_levels, three_levels):
    expected = four_levels if DEPTH[name] == 4 else three_levels
    assert count(name, reduction=reduction) - BASE[name] == expected


@pytest.mark.parametrize("aggregation", ["max", "add", "mul", "mul_gate"])
@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("name", NETS)
def test_skip_and_aggregation_other_than_concat_add_no_parameters(name, skip, aggregation):
    assert count(name, aggregation=aggregation, skip=skip) == count(name)


@pytest.mark.parametrize(
    ("name", "recalibrated", "raw"),
    [
        ("unet", 3_317_220, 2_907_620),
        ("sdnet", 3_445_602, 2_843_490),
        ("fcdensenet", 5_333_418, 4_496_298),
        ("relaynet", 1_491_792, 1_233_744),
    ],
)
def test_concat_has_the_number_of_parameters_of_the_doubled_inputs(name, recalibrated, raw):
    assert count(name, aggregation="concat", skip="recalibrated") == recalibrated
    assert count(name, aggregation="concat", skip="raw") == raw


def test_parameters_of_p5_are_those_of_p1_and_p2_and_p6_adds_those_of_p3_and_p4():
    def names(position: str) -> set[str]:
        network = small("sdnet", positions=position)
        return {name for name, _ in network.named_parameters() if "_se" in name}

    p1, p2, p3, p4 = map(names, POSITIONS[:4])
    assert all((p1, p2, p3, p4))
    assert names("P5") == p1 | p2
    assert names("P6") == p1 | p2 | p3 | p4


# --- modules: as many as there are calls -------------------------------------------------------------------------

PLACES = {"P1": (1, 0), "P2": (1, 0), "P3": (0, 1), "P4": (0, 1), "P5": (2, 0), "P6": (2, 2)}  # per level, once


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("se", ["cse", "sse", "scse"])
@pytest.mark.parametrize("name", NETS)
def test_every_se_module_is_called_once_and_no_two_places_share_one(name, se, position):
    network = small(name, se=se, positions=position)
    calls: Counter[str] = Counter()
    for path, module in network.named_modules(remove_duplicate=False):
        if isinstance(module, Gate):
            module.register_forward_hook(lambda *_, path=path: calls.update([path]))
    blocks = [module for path, module in network.named_modules(remove_duplicate=False) if isinstance(module, SE_BLOCKS)]
    outermost = [block for block in blocks if isinstance(block, ChannelSpatialSE)] if se == "scse" else blocks
    network(torch.rand(1, 1, 16, 16))

    per_level, once = PLACES[position]
    places = per_level * DEPTH[name] + once
    assert len(outermost) == len({id(block) for block in outermost}) == places
    assert len({id(parameter) for block in outermost for parameter in block.parameters()}) == sum(
        len(list(block.parameters())) for block in outermost
    )
    assert len(calls) == places * (2 if se == "scse" else 1)
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("name", NETS)
def test_every_module_with_weights_of_a_network_without_se_is_called(name):
    network = small(name, se=None)
    weighted = {path: module for path, module in network.named_modules() if list(module.parameters(recurse=False))}
    called = set()
    for path, module in weighted.items():
        module.register_forward_hook(lambda *_, path=path: called.add(path))
    network(torch.rand(1, 1, 16, 16))
    assert called == set(weighted)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", NETS)
def test_every_parameter_is_part_of_the_graph(name, aggregation):
    network = small(name, aggregation=aggregation, positions="P5" if aggregation == "concat" else "P6").train()
    network(torch.randn(2, 1, 36, 45)).square().mean().backward()
    assert [path for path, value in network.named_parameters() if value.grad is None] == []
    assert all(value.grad.isfinite().all() for value in network.parameters())


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, {"positions": "P6", "aggregation": "add"}) for name in NETS]
    + [(name, {"aggregation": "concat", "skip": skip}) for name in NETS for skip in SKIPS]
    + [(name, {"se": se, "positions": "P6"}) for name in NETS for se in ("cse", "sse")]
    + [("fcdensenet", {"bottleneck": kind, "act": "prelu", "aggregation": "add"}) for kind in ("dense", "conv5x5_bn")],
)
def test_every_parameter_gets_a_gradient(name, options):
    # without "max", whose smaller map rightly gets none, and without dead units
    network = small(name, **({"norm": "batch"} if name == "unet" else {}), **options).train()
    for path, parameter in network.named_parameters():
        if path.endswith("fc1.bias"):
            nn.init.constant_(parameter, 3)
    network(torch.randn(2, 1, 36, 45)).square().mean().backward()
    assert [path for path, value in network.named_parameters() if value.grad is None or not value.grad.any()] == []


# --- shapes ------------------------------------------------------------------------------------------------------


def buildable(aggregation: str, position: str) -> bool:
    return not (aggregation == "concat" and position in ON_THE_CLASSES)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", NETS)
def test_logits_have_the_size_of_an_input_of_odd_and_tiny_size(name, aggregation, position):
    if not buildable(aggregation, position):
        with pytest.raises(ValueError, match=f"aggregation='concat' with positions='{position}'.*4 classes"):
            small(name, aggregation=aggregation, positions=position)
        return
    for skip in SKIPS:
        network = small(name, aggregation=aggregation, positions=position, skip=skip)
        for size in ((36, 45), (5, 7)):
            output = network(torch.randn(1, 1, *size))
            assert output.shape == (1, 4, *size)
            assert output.isfinite().all()
        volume = small(name, 3, features=2, aggregation=aggregation, positions=position, skip=skip)
        assert volume(torch.randn(1, 1, 17, 20, 24)).shape == (1, 4, 17, 20, 24)


@pytest.mark.parametrize("se", ["cse", "sse", None])
@pytest.mark.parametrize("name", NETS)
def test_the_other_excitations_take_odd_tiny_and_1d_sizes_as_well(name, se):
    for size in ((36, 45), (5, 7), (1, 1), (13,), (17, 20, 24)):
        network = small(name, len(size), features=2, se=se, positions="P6")
        assert network(torch.randn(1, 1, *size)).shape == (1, 4, *size)


@pytest.mark.parametrize("name", NETS)
def test_training_works_on_a_batch_of_odd_images_with_several_channels_and_dropout(name):
    network = NETS[name](2, 3, 5, features=4, dropout=0.5).train()
    x = torch.randn(2, 3, 33, 47)
    assert network(x).shape == (2, 5, 33, 47)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_relaynet_has_kernels_seven_high_and_three_wide():
    for dims, kernel in ((1, (7,)), (2, (7, 3)), (3, (7, 3, 3))):
        network = small("relaynet", dims)
        kernels = {tuple(stage[0].conv.kernel_size) for stage in [*network.encoders, *network.decoders]}
        assert kernels == {kernel}


@pytest.mark.parametrize("name", NETS)
def test_logits_are_not_squashed_by_a_softmax(name):
    network = small(name, se=None)
    nn.init.constant_(network.classifier.bias, 7)
    nn.init.zeros_(network.classifier.weight)
    torch.testing.assert_close(network(torch.rand(1, 1, 8, 8)), torch.full((1, 4, 8, 8), 7.0))


# --- wiring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("name", NETS)
def test_skip_passes_the_recalibrated_or_the_raw_map_and_the_way_down_always_the_recalibrated(name, skip):
    network = small(name, skip=skip)
    seen: dict[str, torch.Tensor] = {}
    for key, module in {
        "u": network.encoders[0],
        "se": network.encoder_se[0],
        "first": network.decoders[0],
    }.items():
        module.register_forward_hook(lambda _m, _i, output, key=key: seen.update({key: output}))
    for key, module in {"below": network.encoders[1], "last": network.decoders[-1]}.items():
        module.register_forward_pre_hook(lambda _m, inputs, key=key: seen.update({key: inputs[0]}))
    network(torch.randn(1, 1, 36, 45))
    assert not torch.equal(seen["u"], seen["se"])
    assert torch.equal(seen["last"][:, :4], seen["se" if skip == "recalibrated" else "u"])
    assert torch.equal(seen["below"], F.max_pool2d(seen["se"], 2, ceil_mode=True))


@pytest.mark.parametrize("name", ["sdnet", "fcdensenet", "relaynet"])
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


@pytest.mark.parametrize("name", NETS)
def test_p4_recalibrates_the_logits_over_the_classes(name):
    plain, network = small(name, se=None), small(name, positions="P4")
    assert network.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    x = torch.randn(1, 1, 9, 10)
    assert network.classifier_se.channel.fc1.in_features == 4
    torch.testing.assert_close(network(x), network.classifier_se(plain(x)), atol=0, rtol=0)


@pytest.mark.parametrize("name", NETS)
def test_with_zeroed_excitations_adding_both_maps_gives_the_plain_network(name):
    plain, network = small(name, se=None), small(name, aggregation="add", positions="P6")
    network.load_state_dict(plain.state_dict(), strict=False)
    for path, parameter in network.named_parameters():
        if "_se" in path:
            nn.init.zeros_(parameter)
    x = torch.randn(1, 1, 19, 14)
    torch.testing.assert_close(network(x), plain(x), atol=0, rtol=0)


# --- equal to a plain restatement, with the names of the authors' code -------------------------------------------

DECODERS = {0: "decode4", 1: "decode1", 2: "decode2", 3: "decode3"}  # decode4 is the deepest one and runs first


def quicknat_name(path: str) -> str:
    """Our path of a parameter to that of quickNAT_pytorch."""
    kind, *rest = path.split(".")
    where = {
        "encoders": lambda: f"encode{int(rest[0]) + 1}",
        "encoder_se": lambda: f"encode{int(rest[0]) + 1}.SELayer",
        "decoders": lambda: DECODERS[int(rest[0])],
        "decoder_se": lambda: f"{DECODERS[int(rest[0])]}.SELayer",
        "bottleneck": lambda: "bottleneck",
        "classifier": lambda: "classifier.conv",
    }[kind]()
    rest = rest[1:] if kind not in ("bottleneck", "classifier") else rest
    return ".".join([where, *rest]).replace(".norm", ".batchnorm").replace(".act.", ".prelu.")


def quicknat(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network of quickNAT_pytorch with spatial excitation, restated with functions only."""

    def step(block: str, number: int, features: torch.Tensor, padding: int) -> torch.Tensor:
        statistics = [weights[f"{block}.batchnorm{number}.{key}"] for key in ("running_mean", "running_var")]
        affine = [weights[f"{block}.batchnorm{number}.{key}"] for key in ("weight", "bias")]
        features = F.prelu(F.batch_norm(features, *statistics, *affine), weights[f"{block}.prelu.weight"])
        return F.conv2d(
            features, weights[f"{block}.conv{number}.weight"], weights[f"{block}.conv{number}.bias"], padding=padding
        )

    def dense(block: str, features: torch.Tensor) -> torch.Tensor:
        features = torch.cat([features, step(block, 1, features, 2)], dim=1)
        features = torch.cat([features, step(block, 2, features, 2)], dim=1)
        features = step(block, 3, features, 0)
        if f"{block}.SELayer.conv.weight" not in weights:
            return features
        squeezed = F.conv2d(features, weights[f"{block}.SELayer.conv.weight"], weights[f"{block}.SELayer.conv.bias"])
        return features / (1 + torch.exp(-squeezed))

    skips, indices = [], []
    for block in ("encode1", "encode2", "encode3", "encode4"):
        skips.append(dense(block, x))
        x, index = F.max_pool2d(skips[-1], 2, 2, return_indices=True)
        indices.append(index)
    x = dense("bottleneck", x)
    for block in ("decode4", "decode1", "decode2", "decode3"):
        x = dense(block, torch.cat([skips.pop(), F.max_unpool2d(x, indices.pop(), 2, 2)], dim=1))
    return F.conv2d(x, weights["classifier.conv.weight"], weights["classifier.conv.bias"])


@pytest.mark.parametrize("se", [None, "sse"])
def test_weights_named_as_in_quicknat_give_the_output_of_its_restatement(se):
    network = small("fcdensenet", bottleneck="dense", act="prelu", se=se).double()
    for path, value in network.state_dict().items():
        if value.is_floating_point():
            nn.init.uniform_(value, 0.5, 2) if path.endswith("running_var") else nn.init.normal_(value, std=0.3)
    weights = {quicknat_name(path): value for path, value in network.state_dict().items()}
    assert len(weights) == len(network.state_dict())
    x = torch.randn(2, 1, 32, 48, dtype=torch.float64)
    expected = quicknat(weights, x)
    torch.testing.assert_close(network(x), expected, atol=1e-12 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
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


# --- compilers and precision -------------------------------------------------------------------------------------

COMPILED = [
    *((name, 2, {"positions": "P6"}) for name in NETS),
    ("sdnet", 3, {"positions": "P6", "skip": "raw"}),
    ("unet", 3, {"upsample": "linear"}),
    ("unet", 2, {"aggregation": "concat"}),
    ("sdnet", 2, {"aggregation": "concat"}),
    ("relaynet", 2, {"aggregation": "concat", "skip": "raw"}),
    ("sdnet", 2, {"se": "cse", "positions": "P6"}),
    ("relaynet", 2, {"se": "sse", "positions": "P6"}),
    ("sdnet", 2, {"se": None}),
]


@pytest.mark.parametrize(("name", "dims", "options"), COMPILED)
def test_script_and_trace_equal_eager(name, dims, options):
    network = small(name, dims, features=2, depth=2, **options)
    x = torch.randn(1, 1, *(9, 11, 7)[:dims])
    expected = network(x)
    scripted = torch.jit.script(network)
    for compiled in (scripted, torch.jit.trace(network, x)):
        torch.testing.assert_close(compiled(x), expected, atol=1e-6, rtol=0)
    other = torch.randn(2, 1, *(12, 5, 6)[:dims])
    torch.testing.assert_close(scripted(other), network(other), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "dims", "options"), COMPILED)
def test_export_equals_eager(name, dims, options):
    network = small(name, dims, features=2, depth=2, **options)
    x = torch.randn(1, 1, *(9, 11, 7)[:dims])
    exported = torch.export.export(network, (x,)).module()
    torch.testing.assert_close(exported(x), network(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["unet", "sdnet"])
def test_compile_without_graph_break_equals_eager(name):
    network = small(name, features=2, depth=1)
    x = torch.randn(1, 1, 9, 11)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), network(x), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [("sdnet", {}), ("sdnet", {"aggregation": "concat"}), ("unet", {"positions": "P6"})],
)
def test_onnx_export_gives_the_logits_of_eager(name, options, tmp_path):
    network = small(name, depth=2, **options)
    x = torch.randn(1, 1, 12, 17)
    torch.onnx.export(network, (x,), tmp_path / "network.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), network(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_autocast_to_bfloat16_runs_forward_and_backward(name):
    network = small(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(torch.randn(2, 1, 36, 45))
        output.float().square().mean().backward()
    assert output.isfinite().all()
    assert all(value.grad.isfinite().all() for value in network.parameters())


@pytest.mark.parametrize("name", NETS)
def test_channels_last_and_non_contiguous_images_give_the_logits_of_contiguous_ones(name):
    network = small(name, positions="P6").double()
    x = torch.randn(2, 1, 19, 14, dtype=torch.float64)
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    assert not transposed.is_contiguous()
    torch.testing.assert_close(network(transposed), network(x), atol=1e-12, rtol=0)
    expected = network(x)
    network.to(memory_format=torch.channels_last)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(last), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NETS)
def test_a_batch_gives_the_logits_of_its_items_in_evaluation(name):
    network = small(name, positions="P6").double()
    x = torch.randn(3, 1, 19, 14, dtype=torch.float64)
    torch.testing.assert_close(network(x), torch.cat([network(item) for item in x.split(1)]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", NETS)
def test_weights_saved_by_one_network_load_into_another_without_pickle(name, tmp_path):
    first, second = small(name), small(name)
    x = torch.randn(1, 1, 10, 9)
    assert not torch.equal(first(x), second(x))
    torch.save(first.state_dict(), tmp_path / "model.pt")
    second.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(first(x), second(x))


# --- bad arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"positions": "P7"},
        {"positions": "p5"},
        {"positions": None},
        {"se": "SCSE"},
        {"se": "none"},
        {"se": ""},
        {"se": ("scse", {"aggregation": "sum"})},
        {"skip": "config1"},
        {"skip": True},
        {"aggregation": "sum"},
        {"depth": 0},
        {"reduction": 0},
        {"reduction": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", NETS)
def test_a_bad_option_raises(name, options):
    with pytest.raises(ValueError):  # noqa: PT011
        small(name, **{"features": 8, **options})


@pytest.mark.parametrize(("name", "options"), [("unet", {"upsample": "cubic"}), ("fcdensenet", {"bottleneck": "none"})])
def test_a_bad_option_of_one_network_raises(name, options):
    with pytest.raises(ValueError, match=r"nearest|conv1x1"):
        small(name, **options)


@pytest.mark.parametrize("position", ON_THE_CLASSES)
@pytest.mark.parametrize("name", NETS)
def test_excitation_of_a_single_class_needs_sse(name, position):
    for se in ("cse", "scse"):
        with pytest.raises(ValueError, match="se='sse'"):
            NETS[name](2, 1, 1, features=4, se=se, positions=position)
    network = NETS[name](2, 1, 1, features=4, se="sse", positions=position).eval()
    assert network(torch.rand(1, 1, 9, 8)).shape == (1, 1, 9, 8)


@pytest.mark.parametrize("position", ON_THE_CLASSES)
@pytest.mark.parametrize("se", ["cse", "sse", None])
def test_concat_is_of_no_concern_to_the_excitations_that_have_one_map(se, position):
    assert count("sdnet", se=se, positions=position, aggregation="concat") == count("sdnet", se=se, positions=position)


@pytest.mark.parametrize("name", NETS)
def test_options_are_keyword_only(name):
    with pytest.raises(TypeError):
        NETS[name](2, 1, 4, 8)


def test_unpooling_networks_pool_with_indices_and_all_networks_pool_once_per_level():
    for name in NETS:
        network = small(name)
        pools = [module for module in network.modules() if isinstance(module, MaxPoolWithIndices)]
        sizes = []
        pools[0].register_forward_hook(lambda _m, inputs, _o, sizes=sizes: sizes.append(tuple(inputs[0].shape[2:])))
        network(torch.rand(1, 1, 17, 24))
        assert sizes == [(17, 24), (9, 12), (5, 6), (3, 3)][: DEPTH[name]]
