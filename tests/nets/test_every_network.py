# SPDX-License-Identifier: Apache-2.0
"""What holds for every network: its arguments, any size, gradients, memory layouts, precision and compilers."""

import inspect
from functools import partial

import pytest
import torch
from monai.networks import nets as monai_nets
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.fx import symbolic_trace

from monai_attn import nets
from monai_attn.adapt import autofocus, recalibrate

OTHERS = {"EGCNN", "AllOutputs"}  # they take a network
NARROW = {"features": 2, "depth": 1}
AUTOFOCUS = {"channels": (4, 4, 6, 6)}
FOCUS = {"channels": (8, 8, 16), "se_reduction": 2}
NETWORKS = {
    "unet": (nets.SCSEUNet, {**NARROW, "aggregation": "add", "positions": "P6", "norm": "batch"}),
    "unet linear cse": (nets.SCSEUNet, {**NARROW, "upsample": "linear", "se": "cse", "positions": "P6"}),
    "unet raw concat": (nets.SCSEUNet, {**NARROW, "aggregation": "concat", "skip": "raw"}),
    "sdnet": (nets.SCSESDNet, {**NARROW, "aggregation": "mul", "positions": "P6", "skip": "raw"}),
    "sdnet concat": (nets.SCSESDNet, {**NARROW, "aggregation": "concat"}),
    "sdnet plain": (nets.SCSESDNet, {**NARROW, "se": None}),
    "dense": (nets.SCSEFCDenseNet, {**NARROW, "aggregation": "mul_gate", "positions": "P6"}),
    "dense prelu": (nets.SCSEFCDenseNet, {**NARROW, "bottleneck": "dense", "act": "prelu", "se": "sse"}),
    "dense bn": (nets.SCSEFCDenseNet, {**NARROW, "bottleneck": "conv5x5_bn", "se": "sse"}),
    "relaynet": (nets.ReLayNet, {**NARROW, "aggregation": "concat", "skip": "raw"}),
    "relaynet cse": (nets.ReLayNet, {**NARROW, "se": "cse", "positions": "P6"}),
    "isbi": (nets.FocusNet, {**FOCUS, "padding": "tf"}),
    "series": (nets.FocusNet, {**FOCUS, "variant": "series"}),
    "afnet": (nets.AFNet, {**AUTOFOCUS, "n_autofocus": 1}),
    "lean afnet": (nets.AFNet, {**AUTOFOCUS, "n_autofocus": 1, "memory_efficient": True}),
    "aspp": (nets.ASPPNet, AUTOFOCUS),
    "aspp sum": (nets.ASPPNet, {**AUTOFOCUS, "fusion": "sum"}),
    "deepmedic": (nets.DeepMedic, {"channels": (6, 6, 8, 8), "fc_channels": (6, 6), "act": "prelu", "scale": 2}),
}

# for the compilers, which take a second each; the others differ little
FAST = ("unet", "sdnet concat", "dense prelu", "relaynet cse", "isbi", "series", "afnet", "aspp", "deepmedic")

every_network = pytest.mark.parametrize("name", NETWORKS)


def build(name: str, dims: int = 2) -> nn.Module:
    kind, options = NETWORKS[name]
    return kind(dims, 2, 4, **options)


@pytest.mark.parametrize("name", sorted(set(nets.__all__) - OTHERS))
def test_a_network_takes_dimensions_and_channels_first_and_all_options_by_keyword(name):
    parameters = list(inspect.signature(getattr(nets, name)).parameters.values())
    assert [parameter.name for parameter in parameters[:3]] == ["spatial_dims", "in_channels", "out_channels"]
    assert {parameter.kind for parameter in parameters[3:]} == {inspect.Parameter.KEYWORD_ONLY}


@every_network
def test_logits_have_the_size_of_an_image_of_odd_and_tiny_size_and_those_of_the_image_alone(name):
    for size in ((1,), (13,), (1, 1), (5, 7), (9, 10, 7)):
        network, x = build(name, len(size)).double().eval(), torch.randn(2, 2, *size, dtype=torch.float64)
        expected = torch.cat([network(item) for item in x.split(1)])
        assert expected.shape == (2, 4, *size)
        assert expected.isfinite().all()
        strided = torch.stack([x, -x], dim=-1)[..., 0]
        torch.testing.assert_close(network(strided), expected, atol=1e-9, rtol=0)
    network.to(memory_format=torch.channels_last_3d)
    last = x.contiguous(memory_format=torch.channels_last_3d)
    torch.testing.assert_close(network(last), expected, atol=1e-9, rtol=0)


@every_network
def test_every_parameter_gets_a_gradient_and_a_finite_one_by_autocast(name):
    network, x = build(name).train(), torch.randn(2, 2, 36, 45)
    for path, parameter in network.named_parameters():
        if path.endswith("fc1.bias"):
            nn.init.constant_(parameter, 3)  # no unit is off
    network(x).pow(3).mean().backward()
    # batch norm takes away the bias of the convolution before it, and all that is left of its gradient is rounding
    dead = [path for path, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert [path for path in dead if not path.endswith("conv1.bias")] == []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = network(x)
        output.float().square().mean().backward()
    assert output.isfinite().all()
    assert all(value.grad.isfinite().all() for value in network.parameters())


@pytest.mark.parametrize(
    ("name", "dims"),
    [pytest.param(name, 2 + i % 2, marks=[] if name in FAST else pytest.mark.slow) for i, name in enumerate(NETWORKS)],
)
def test_script_trace_and_export_equal_eager(name, dims):
    network, x = build(name, dims).eval(), torch.randn(1, 2, *(10, 11, 8)[:dims])
    scripted = torch.jit.script(network)
    with torch.no_grad():
        others = [torch.jit.trace(network, x, check_trace=False), torch.export.export(network, (x,)).module()]
        for other in (scripted, *others):
            torch.testing.assert_close(other(x), network(x), atol=1e-5, rtol=0)
        larger = torch.randn(2, 2, *(12, 5, 6)[:dims])
        torch.testing.assert_close(scripted(larger), network(larger), atol=1e-5, rtol=0)


@pytest.mark.slow  # the compiler takes seconds to start
@every_network
def test_compile_without_graph_break_equals_eager(name):
    network, x = build(name).eval(), torch.randn(1, 2, 9, 11)
    torch._dynamo.reset()  # it compiles one function for so many networks only
    with torch.no_grad():
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), network(x), atol=1e-5, rtol=0)


HOSTS = {
    "unet": lambda: monai_nets.UNet(2, 2, 4, channels=(4, 8, 16), strides=(2, 2), num_res_units=1),
    "dynunet": lambda: monai_nets.DynUNet(2, 2, 4, [3, 3, 3], [1, 2, 2], [2, 2]),
    "segresnet": lambda: monai_nets.SegResNet(2, 8, 2, 4),
}
WAYS = {
    "scse": lambda host: recalibrate(host, zero_effect=True),
    "autofocus": lambda host: autofocus(host, last=2),
    "egcnn": nets.EGCNN,
}
ADAPTED = [(way, host) for way in WAYS for host in HOSTS if (way, host) != ("egcnn", "unet")]  # which is too shallow


@pytest.mark.fault(95)
@pytest.mark.parametrize(
    "name", [*NETWORKS, *ADAPTED], ids=lambda name: name if isinstance(name, str) else "-".join(name)
)
def test_networks_are_transformed_traced_by_fx_and_materialized_from_meta(name):
    def make():
        return build(name) if isinstance(name, str) else WAYS[name[0]](HOSTS[name[1]]())

    network, x = make().eval(), torch.randn(2, 2, 16, 16)
    expected, state = network(x), (dict(network.named_parameters()), dict(network.named_buffers()))

    def one(parameters, image):
        return functional_call(network, (parameters, state[1]), (image[None],))[0]

    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    for grad_enabled in (True, False):
        with torch.set_grad_enabled(grad_enabled):
            close(vmap(partial(one, state[0]))(x), expected)
    gradients = vmap(grad(lambda *given: one(*given).square().mean()), in_dims=(None, 0))(state[0], x)
    assert all(value.isfinite().all() for value in gradients.values())
    traced = symbolic_trace(network)
    for image in (x, torch.randn(1, 2, 32, 16)):
        close(traced(image), network(image))

    with torch.device("meta"):
        empty = make()
    assert empty(x.to("meta")).shape == expected.shape
    empty.to_empty(device="cpu")
    for value in empty.state_dict().values():
        value.fill_(torch.nan if value.is_floating_point() else 77)
    for module in empty.modules():
        getattr(module, "reset_parameters", lambda: None)()
    assert all(value.isfinite().all() and (value != 77).all() for value in empty.state_dict().values())
    empty.load_state_dict(network.state_dict())
    close(empty.eval()(x), expected)
