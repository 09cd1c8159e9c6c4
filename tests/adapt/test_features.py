# SPDX-License-Identifier: Apache-2.0
import copy
import threading

import pytest
import torch
from monai.networks import nets
from torch import nn

from monai_attn.adapt import FeatureExtractor, Places, features_of, places_of, recalibrate


class Own(nn.Module):
    """A small network with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.norm, self.down = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 2, 2)
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, 2))
        self.head, self.spare = nn.Conv2d(4, 3, 1), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.norm(self.fine(x))
        return self.head(self.up(self.down(fine)) + fine).softmax(1)


OWN = Places(["norm"], ["up"], bottleneck="down", classifier="head", divisor=(2, 4))


def test_channels_come_from_one_run_in_evaluation_on_the_smallest_image_of_the_networks_type():
    net, calls = Own().double(), []
    net.register_forward_pre_hook(
        lambda net, x: calls.append((tuple(x[0].shape), x[0].dtype, net.training, torch.is_grad_enabled()))
    )
    extractor = FeatureExtractor(net, OWN)
    assert calls == [((1, 2, 4, 4), torch.float64, False, False)]
    assert (extractor.encoder_channels, extractor.decoder_channels, extractor.out_channels) == ((4, 8), (4,), 3)
    FeatureExtractor(net, OWN._replace(size=(6, 8)))
    assert calls[1][0] == (1, 2, 6, 8)
    with torch.device("meta"):
        assert features_of(nets.VNet()).encoder_channels == (16, 32, 64, 128, 256)


def test_the_dry_run_leaves_modes_statistics_random_numbers_and_no_hooks_even_if_it_fails():
    net = Own().train()
    net.norm.eval()
    running, random = net.norm.running_mean.clone(), torch.get_rng_state()
    FeatureExtractor(net, OWN)
    with pytest.raises(RuntimeError):
        FeatureExtractor(net, OWN._replace(size=(3, 3)))
    assert (net.training, net.norm.training, net.head.training) == (True, False, True)
    assert torch.equal(net.norm.running_mean, running)
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_of_ones_own_shows_its_features_and_the_classifiers_logits():
    net, x = Own().eval(), torch.rand(1, 2, 8, 8)
    extractor = FeatureExtractor(net, OWN)
    for runs in (extractor, copy.deepcopy(extractor)):
        (fine, coarse), (up,), logits = runs(x)
        assert torch.equal(fine, net.norm(net.fine(x)))
        assert torch.equal(coarse, net.down(fine))
        assert torch.equal(up, net.up(coarse))
        assert torch.equal(logits, net.head(up + fine))
    assert list(extractor.state_dict()) == [f"net.{key}" for key in net.state_dict()]
    probabilities = FeatureExtractor(net, OWN._replace(classifier=None))(x)[2]
    assert torch.equal(probabilities, net(x))
    inputs = FeatureExtractor(net, OWN._replace(features=["down:0", "up:0"]))(x)[0]
    assert torch.equal(inputs[0], fine)
    assert torch.equal(inputs[1], coarse)


def test_threads_that_run_one_network_at_the_same_time_see_their_own_features():
    net = Own().eval()
    extractor, images = FeatureExtractor(net, OWN), [torch.rand(1, 2, 4, 4), torch.rand(1, 2, 8, 8)]
    barrier, shown = threading.Barrier(2), {}

    def wait(*_: object) -> None:
        barrier.wait(60)

    net.down.register_forward_pre_hook(wait)  # until both are within the network

    def run(index: int) -> None:
        shown[index] = extractor(images[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tuple(shown[index][0][0].shape[2:]) for index in range(2)] == [(4, 4), (8, 8)]
    assert [tuple(shown[index][2].shape[2:]) for index in range(2)] == [(4, 4), (8, 8)]


@pytest.mark.parametrize(
    ("net", "divisor"),
    [
        (lambda: nets.UNet(2, 1, 3, (8, 16, 32, 64), ((1, 2), 2, 2, 5)), (4, 8)),  # the fourth stride is not used
        (lambda: nets.UNet(3, 1, 3, (4, 8), (2,)), (2, 2, 2)),
        (lambda: nets.AttentionUnet(2, 1, 3, (8, 16), (2,)), (2, 2)),
        (lambda: nets.DynUNet(3, 1, 3, [3] * 3, [1, (1, 2, 2), 2], [(1, 2, 2), 2], filters=(8, 16, 32)), (2, 4, 4)),
        (lambda: nets.DynUNet(2, 1, 3, [3] * 3, [(2, 1), 2, 2], [2, 2], filters=(8, 16, 32)), (8, 4)),
        (lambda: nets.SegResNet(2, 8, 1, 3, blocks_down=(1, 1, 1), blocks_up=(1, 1)), 4),
        (lambda: nets.SegResNet(2, 8, 1, 8, use_conv_final=False), 8),
        (lambda: nets.SegResNetDS(3, 8, 1, 3, resolution=(1, 1, 5)), [8, 8, 2]),
        (lambda: nets.SegResNetDS(2, 8, 1, 3, preprocess=nn.Softmax(-1)), [8, 8]),
        (lambda: nets.FlexibleUNet(1, 2, "efficientnet-b0"), 32),
    ],
)
def test_anisotropic_short_and_other_variants_have_their_divisor_and_the_networks_logits(net, divisor):
    net = net().eval()
    assert places_of(net).divisor == divisor
    x = torch.rand(1, 1, *[2 * side for side in ([divisor] * 2 if isinstance(divisor, int) else divisor)])
    with torch.no_grad():
        assert torch.equal(features_of(net)(x)[2], net(x))


@pytest.mark.parametrize("net", [nets.SegResNetDS(2, 8, 1, 3, dsdepth=3), None])
def test_in_training_with_deep_supervision_the_logits_are_the_finest(net):
    net = net or nets.DynUNet(2, 1, 3, [3] * 4, [1, 2, 2, 2], [2] * 3, deep_supervision=True)
    x = torch.rand(2, 1, 16, 16)
    outputs = net.train()(x)
    finest = outputs[0] if isinstance(outputs, list) else outputs[:, 0]
    torch.testing.assert_close(features_of(net).train()(x)[2], finest)


def test_of_the_modules_that_it_runs_by_itself_no_key_is_saved_missing_or_superfluous_twice():
    extractor = features_of(nets.UNet(2, 1, 3, (8, 16, 32), (2, 2)))
    state = extractor.state_dict()
    assert [path for path, _ in extractor.named_parameters()] == [path for path in state if "running" not in path]
    extractor.load_state_dict({key: value + 1 for key, value in state.items()}, assign=True)
    assert {id(p) for p in extractor.ups.parameters()} <= {id(p) for p in extractor.net.parameters()}
    gone = next(iter(state))
    state["net.more"] = state.pop(gone)
    result = extractor.load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == ([gone], ["net.more"])


def test_blocks_that_were_put_in_before_or_after_are_seen():
    net, x = nets.UNet(2, 1, 3, (8, 16, 32), (2, 2), norm="batch").eval(), torch.rand(1, 1, 16, 16)
    extractor, first = features_of(net), features_of(net)(x)[0][0]
    recalibrate(net, positions="P1")
    assert torch.equal(extractor(x)[0][0], net.get_submodule("model.0").recalibration(first))


def test_an_extractor_is_returned_as_it_is_and_an_unknown_class_raises_and_says_what_to_give():
    extractor = FeatureExtractor(Own(), OWN)
    assert features_of(extractor) is extractor
    for network in (Own(), nn.Identity()):
        with pytest.raises(TypeError, match=rf"{type(network).__name__} are not known.*BasicUNet.*EGCNN\(FeatureEx"):
            features_of(network)


@pytest.mark.parametrize(
    ("places", "error", "message"),
    [
        (OWN._replace(decoders=["bottom", "top"]), ValueError, r"Own has no module \['bottom', 'top'\].*'down'"),
        (OWN._replace(bottleneck="spare"), ValueError, r"does not run its module \['spare'\]"),
        (
            OWN._replace(encoders=["down"], bottleneck="norm"),
            ValueError,
            r"encoder features of Own must go from fine to coarse, got sizes \[\(2, 2\), \(4, 4\)\]",
        ),
        (OWN._replace(decoders=["up", "down"]), ValueError, "decoder features of Own must go from coarse to fine"),
    ],
)
def test_wrong_places_raise_and_are_named(places, error, message):
    with pytest.raises(error, match=message):
        FeatureExtractor(Own(), places)


def test_an_output_that_is_no_tensor_and_a_network_without_convolution_raise_and_are_named():
    net = nets.BasicUNetPlusPlus(2, 1, 3, features=(4, 4, 4, 4, 4, 4))
    with pytest.raises(TypeError, match="BasicUNetPlusPlus must give one tensor, got list"):
        FeatureExtractor(net, Places(["conv_0_0"], ["upcat_0_4"], "conv_1_0", None, divisor=16))
    with pytest.raises(TypeError, match="module 'encoder' of SegResNetDS must give one tensor, got list"):
        FeatureExtractor(nets.SegResNetDS(2, 8), Places(["encoder"], [], None, None, divisor=8))
    with pytest.raises(ValueError, match="Linear has no convolution"):
        FeatureExtractor(nn.Linear(3, 3), Places([""], [], None, None, divisor=1))
