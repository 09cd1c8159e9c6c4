# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from monai.networks.nets import DynUNet, VNet
from torch import nn

from monai_attn.adapt import with_group_norm


def paths(network: nn.Module, *kinds: type) -> list[str]:
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def dynunet() -> DynUNet:  # has its modules twice
    return DynUNet(2, 1, 3, [3] * 3, [1, 2, 2], [2] * 2, filters=(8, 16, 32), norm_name="batch")


@pytest.mark.parametrize("build", [lambda: VNet(2, 1, 3), dynunet])
def test_a_group_norm_has_the_place_the_keys_and_the_parameters_of_every_batch_norm(build):
    network = build()
    places, keys, parameters = (
        paths(network, nn.BatchNorm2d),
        list(network.state_dict()),
        dict(network.named_parameters()),
    )
    assert places
    assert with_group_norm(network) is network
    assert (paths(network, nn.BatchNorm2d), paths(network, nn.GroupNorm)) == ([], places)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert list(network.state_dict()) == [key for key in keys if not key.endswith(statistics)]
    assert all(parameters[key] is value for key, value in network.named_parameters())
    x = torch.rand(2, 1, 16, 16)
    network.eval()
    torch.testing.assert_close(network(x), torch.cat([network(item) for item in x.split(1)]), atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.jit.script(network)(x), network(x))


def test_where_the_groups_do_not_divide_the_channels_the_greatest_common_divisor_does():
    for groups, expected in ((8, [8, 8, 4, 4, 1, 1]), (6, [2, 2, 6, 2, 3, 1]), (1, [1] * 6)):
        layers = nn.Sequential(*(nn.BatchNorm3d(channels) for channels in (64, 8, 12, 4, 3, 1)))
        assert [layer.num_groups for layer in with_group_norm(layers, num_groups=groups)] == expected
    with pytest.raises(ValueError, match="got 0"):
        with_group_norm(nn.BatchNorm2d(8), 0)


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
