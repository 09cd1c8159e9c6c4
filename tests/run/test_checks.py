# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import monai.bundle
import pytest
import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

from monai_attn.errors import ConfigError
from monai_attn.nets import EGCNN, AFNet, FocusNet
from monai_attn.run.checks import check_command, check_overrides, check_settings

COMMAND = [monai.bundle.__file__.replace("__init__", "__main__"), "run"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"epochs": 3, "output_dir": "out", "network_def": {"features": 8}, "train": {"x": 1}}))
    return str(path)


def refused(*arguments, **settings) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_settings(*arguments, **settings)
    return caught.value


@pytest.mark.parametrize(("name", "nearest"), [("epoch", "--epochs"), ("output_dri", "--output_dir")])
def test_unknown_overrides_are_refused_with_the_nearest_name(config, name, nearest):
    with pytest.raises(ConfigError) as caught:
        check_overrides([config], {name: 1})
    assert caught.value.what == f"--{name}"
    assert nearest in caught.value.fix


def test_nested_overrides_and_keys_of_an_overlay_are_accepted(config):
    check_overrides([config], {"network_def#features": 4, "network_def::new": 1, "+train": [], "epochs": "$1 + 2"})


def test_a_number_sign_in_a_path_is_refused(config):
    with pytest.raises(ConfigError, match="MONAI would read it as '::'"):
        check_overrides([config], {"output_dir": "a#b"})


@pytest.mark.parametrize("words", [["--epoch", "7"], ["--epoch=7"], ["--epochs", "7", "--epoch"]])
def test_the_command_line_is_checked(config, words):
    check_command([*COMMAND, "--config_file", config, "--epochs", "7", "--bundle_root=."][:-1])
    with pytest.raises(ConfigError, match="did you mean --epochs"):
        check_command([*COMMAND, "--config_file", f"['{config}']", *words])


def test_overrides_of_an_arguments_file_are_checked_too(config, tmp_path):
    arguments = tmp_path / "args.json"
    arguments.write_text(json.dumps({"config_file": config, "epoch": 7}))
    with pytest.raises(ConfigError, match="did you mean --epochs"):
        check_command([*COMMAND, "--args_file", str(arguments)])


def test_other_programs_have_their_own_options(config):
    check_command(["pytest", "run", "--config_file", config, "--epoch", "7"])
    check_command([COMMAND[0], "ckpt_export", "--config_file", config, "--key_in_ckpt", "model"])


def segresnet(in_channels: int = 1) -> nn.Module:
    return EGCNN(SegResNet(3, 8, in_channels, 2, blocks_down=(1, 1, 1, 1)))


def test_a_size_that_the_network_cannot_take_is_refused_with_one_that_it_can():
    error = refused("cpu", segresnet(), 1, 2, crop_size=[30, 48, 32])
    assert error.what == "--crop_size [30, 48, 32]"
    assert "needs multiples of 8" in error.problem
    assert error.fix == '--crop_size "[32, 48, 32]"'
    check_settings("cpu", segresnet(), 1, 2, crop_size=[32, 48, 32])


@pytest.mark.parametrize(
    ("network", "size"),
    [(AFNet(3, 1, 2, channels=[2] * 8), [30, 31, 33]), (FocusNet(2, 1, 1, channels=[8, 16, 16]), [30, 33])],
    ids=["AFNet", "FocusNet"],
)
def test_networks_that_take_any_size_get_it(network, size):
    check_settings("cpu", network, 1, 2, image_size=size)


def test_the_check_leaves_the_network_and_the_random_numbers_as_they_are():
    network = segresnet()
    torch.manual_seed(0)
    check_settings("cpu", network, 1, 2, crop_size=[16, 16, 16])
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))
    assert {value.device.type for value in network.state_dict().values()} == {"cpu"}
    assert network.training


def test_a_size_that_fails_for_another_reason_is_left_to_the_run():
    unet = UNet(2, 1, 1, (4, 8, 8), (2, 2))
    check_settings("cpu", unet, 3, 2, image_size=[30, 30])
    check_settings("cpu", unet, 1, 2, image_size=[-1, 30])


def test_one_channel_is_refused_where_a_softmax_or_argmax_is():
    error = refused("cpu", nn.Identity(), 1, 1)
    assert error.what == "--out_channels 1"
    assert "sigmoid" in error.fix
    check_settings("cpu", nn.Identity(), 1, 1, softmax=False)


@pytest.mark.parametrize("device", ["cuda:93", "gpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    error = refused(device, nn.Identity(), 1, 2)
    assert error.what == f"--device {device}"
    assert error.fix.startswith("this machine has cpu")


@pytest.mark.parametrize("values", [[2, 1, 4], [2, 1], [3, 1, 2]])
def test_a_region_is_written_as_one_of_its_own_labels(values):
    regions = [[1, 2], [1], [2]]
    error = refused("cpu", nn.Identity(), 1, 3, regions=regions, region_values=values)
    assert error.problem.endswith("the regions are [[1, 2], [1], [2]]")
    check_settings("cpu", nn.Identity(), 1, 3, regions=regions, region_values=[2, 1, 2])


@pytest.mark.parametrize("value", ["false", 1, None])
def test_a_switch_is_a_truth_value(value):
    assert refused("cpu", nn.Identity(), 1, 2, save_attention=value).fix == "give True or False"
