# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.nets import AttentionUnet, DynUNet, SegResNetDS, UNet, VNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from monai_attn.adapt import stream_of, with_group_norm


def paths(network: nn.Module, kind: type) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kind)]


NETS = {
    "VNet": lambda: VNet(2, 1, 3),
    "UNet": lambda: UNet(2, 1, 3, (8, 16, 32), (2, 2), norm="batch", num_res_units=1),
    "AttentionUnet": lambda: AttentionUnet(2, 1, 3, (8, 16, 32), (2, 2)),
    "SegResNetDS": lambda: SegResNetDS(2, 8, 1, 3),
    "DynUNet": lambda: DynUNet(2, 1, 3, [3] * 3, [1, 2, 2], [2] * 2, filters=(8, 16, 32), norm_name="batch"),
}


@pytest.mark.parametrize("name", NETS)
def test_no_batch_norm_is_left_and_a_group_norm_has_the_place_of_each(name):
    network = NETS[name]()
    places = paths(network, _BatchNorm)
    assert places
    assert with_group_norm(network) is network
    assert paths(network, _BatchNorm) == []
    assert paths(network, nn.GroupNorm) == places


@pytest.mark.parametrize("name", NETS)
def test_the_keys_stay_but_for_the_running_statistics_and_so_do_the_parameters(name):
    network = NETS[name]()
    keys, parameters = list(network.state_dict()), dict(network.named_parameters())
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    with_group_norm(network)
    assert list(network.state_dict()) == [key for key in keys if not key.endswith(statistics)]
    assert all(parameters[key] is value for key, value in network.named_parameters())


@pytest.mark.parametrize("dims", [2, 3])
def test_v_net_normalises_every_volume_by_itself(dims):
    network = with_group_norm(VNet(dims, 1, 3)).train()
    for dropout in (nn.Dropout2d, nn.Dropout3d):
        for path in paths(network, dropout):
            network.get_submodule(path).p = 0.0
    x = torch.rand(2, 1, *[16] * dims)
    torch.testing.assert_close(network(x), torch.cat([network(item) for item in x.split(1)]), atol=1e-4, rtol=0)
    assert torch.equal(network.eval()(x), network.train()(x))


def test_where_the_groups_do_not_divide_the_channels_the_greatest_common_divisor_does():
    layers = nn.Sequential(*(nn.BatchNorm3d(channels) for channels in (64, 8, 12, 4, 3, 1)))
    assert [layer.num_groups for layer in with_group_norm(copy.deepcopy(layers))] == [8, 8, 4, 4, 1, 1]
    assert [layer.num_groups for layer in with_group_norm(copy.deepcopy(layers), num_groups=6)] == [2, 2, 6, 2, 3, 1]
    assert [layer.num_groups for layer in with_group_norm(layers, num_groups=1)] == [1] * 6


def test_the_other_options_of_the_batch_norm_are_kept_and_other_norms_left_alone():
    layers = nn.Sequential(
        nn.BatchNorm2d(8, eps=1e-3), nn.BatchNorm1d(8, affine=False), nn.SyncBatchNorm(8), nn.InstanceNorm2d(8)
    )
    layers[0].double().eval()
    first, second, third, last = with_group_norm(layers)
    assert (first.eps, first.weight.dtype, first.training) == (1e-3, torch.float64, False)
    assert (second.affine, second.weight) == (False, None)
    assert isinstance(third, nn.GroupNorm)
    assert third.training
    assert isinstance(last, nn.InstanceNorm2d)


def test_a_stream_sees_the_new_norms_of_its_network():
    network = UNet(2, 1, 3, (8, 16, 32), (2, 2), norm="batch").eval()
    stream = stream_of(network)
    with_group_norm(network)
    x = torch.rand(1, 1, 16, 16)
    assert paths(stream, _BatchNorm) == []
    assert torch.equal(stream(x)[2], network(x))


def test_a_configuration_builds_v_net_with_group_norm():
    config = {
        "_target_": "monai_attn.adapt.with_group_norm",
        "network": {"_target_": "VNet", "spatial_dims": 2, "out_channels": 3},
        "num_groups": 4,
    }
    network = ConfigParser({"network": config}).get_parsed_content("network")
    assert isinstance(network, VNet)
    assert {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)} == {4, 1}


@pytest.mark.parametrize("name", ["VNet", "UNet"])
def test_script_and_export_equal_eager(name):
    network = with_group_norm(NETS[name]()).eval()
    x = torch.rand(1, 1, 16, 16)
    for compiled in (torch.jit.script(network), torch.export.export(network, (x,)).module()):
        assert torch.equal(compiled(x), network(x))


@pytest.mark.parametrize("groups", [0, -8])
def test_fewer_than_one_group_raises(groups):
    with pytest.raises(ValueError, match=f"got {groups}"):
        with_group_norm(nn.BatchNorm2d(8), groups)
