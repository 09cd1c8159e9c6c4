# SPDX-License-Identifier: Apache-2.0
import json

import monai.bundle
import pytest
import torch
from monai.networks.nets import SegResNet, UNet
from torch import nn

from monai_attn.errors import ConfigError
from monai_attn.nets import EGCNN, AFNet, FocusNet
from monai_attn.run.checks import check_command, check_overrides, check_settings

from ..conftest import refused

COMMAND = [monai.bundle.__file__.replace("__init__", "__main__"), "run"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"epochs": 3, "output_dir": "out", "network_def": {"features": 8}, "train": {"x": 1}}))
    return str(path)


def test_unknown_overrides_and_a_number_sign_in_a_path_are_refused(config):
    check_overrides([config], {"network_def#features": 4, "+train": {}, "epochs": "$1 + 2"})
    assert "--output_dir" in refused("--output_dri", check_overrides, [config], {"output_dri": 1}, kind=ConfigError).fix
    with pytest.raises(ConfigError, match="MONAI would read # as a separator"):
        check_overrides([config], {"output_dir": "a#b"})


@pytest.mark.parametrize(
    ("option", "better"),
    [("2024", "\"'2024'\""), ("none", "'$None'"), ("None", "'$None'"), ("007", ""), ("'2024'", ""), ("$None", "")],
)
def test_what_monai_reads_in_another_way_than_it_is_meant_is_refused(config, option, better):
    command = [*COMMAND, "--config_file", config, "--output_dir", option]
    if better:
        assert refused(f"--output_dir {option}", check_command, command, kind=ConfigError).fix.endswith(f" {better}")
    else:
        meant = None if option == "$None" else option.strip("'")
        assert check_command(command) == ([config], {"output_dir": meant})


@pytest.mark.parametrize("words", [["--epoch=7"], ["--epochs", "7", "--epoch"]])
def test_the_command_line_is_checked(config, words):
    check_command([*COMMAND, "--config_file", config, "--epochs", "7", "--bundle_root=."][:-1])
    with pytest.raises(ConfigError, match="did you mean --epochs"):
        check_command([*COMMAND, "--config_file", f"['{config}']", *words])


def test_an_arguments_file_is_checked_too_but_no_other_program(config, tmp_path):
    arguments = tmp_path / "args.json"
    arguments.write_text(json.dumps({"config_file": config, "epoch": 7}))
    with pytest.raises(ConfigError, match="did you mean --epochs"):
        check_command([*COMMAND, "--args_file", str(arguments)])
    check_command(["pytest", "run", "--config_file", config, "--epoch", "7"])
    check_command([COMMAND[0], "ckpt_export", "--config_file", config, "--key_in_ckpt", "model"])


def unfit(what, *arguments, **settings):
    return refused(what, check_settings, *arguments, kind=ConfigError, **settings)


def segresnet(in_channels: int = 1) -> nn.Module:
    return EGCNN(SegResNet(3, 8, in_channels, 2, blocks_down=(1, 1, 1, 1)))


def test_a_size_that_the_network_cannot_take_is_refused_with_one_that_it_can():
    error = unfit("--crop_size [30, 48, 32]", "cpu", segresnet(), 1, 2, crop_size=[30, 48, 32])
    assert "needs multiples of 8" in error.problem
    assert error.fix == '--crop_size "[32, 48, 32]"'
    check_settings("cpu", segresnet(), 1, 2, crop_size=[32, 48, 32])


def test_networks_that_take_any_size_get_it_and_other_failures_are_left_to_the_run():
    check_settings("cpu", AFNet(3, 1, 2, channels=[2] * 8), 1, 2, image_size=[30, 31, 33])
    check_settings("cpu", FocusNet(2, 1, 1, channels=[8, 16, 16]), 1, 2, image_size=[30, 33])
    unet = UNet(2, 1, 1, (4, 8, 8), (2, 2))
    check_settings("cpu", unet, 3, 2, image_size=[30, 30])
    check_settings("cpu", unet, 1, 2, image_size=[-1, 30])


def test_the_check_leaves_the_network_and_the_random_numbers_as_they_are():
    network = segresnet()
    torch.manual_seed(0)
    check_settings("cpu", network, 1, 2, crop_size=[16, 16, 16])
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))
    assert {value.device.type for value in network.state_dict().values()} == {"cpu"}
    assert network.training


@pytest.mark.parametrize("device", ["cuda:93", "gpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    assert unfit(f"--device {device}", device, nn.Identity(), 1, 2).fix.startswith("this machine has cpu")


@pytest.mark.parametrize("values", [[2, 1, 4], [2, 1], [3, 1, 2]])
def test_a_region_is_written_as_one_of_its_own_labels(values):
    regions = [[1, 2], [1], [2]]
    error = unfit(f"--region_values {values}", "cpu", nn.Identity(), 1, 3, regions=regions, region_values=values)
    assert error.problem.endswith("the regions are [[1, 2], [1], [2]]")
    check_settings("cpu", nn.Identity(), 1, 3, regions=regions, region_values=[2, 1, 2])


def test_switches_are_truth_values():
    error = unfit("--save_attention false", "cpu", nn.Identity(), 1, 2, save_attention="false")
    assert error.fix == "give True or False"
    check_settings("cpu", nn.Identity(), 1, 1, softmax=False)  # without it one channel is refused
