# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from monai_attn.errors import ConfigError
from monai_attn.workflow.config import check_config

SEGRESNET = {
    "_target_": "SegResNet",
    "spatial_dims": 3,
    "in_channels": "@in_channels",
    "out_channels": 2,
    "init_filters": 8,
}
VNET = {
    "_target_": "monai_attn.adapt.with_group_norm",
    "network": {"_target_": "VNet", "spatial_dims": 3, "in_channels": "@in_channels", "out_channels": 2},
}
UNET = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": "@in_channels",
    "out_channels": 1,
    "channels": [4, 8, 8, 8, 8],
    "strides": [2, 2, 2, 2],
}
BASIC_UNET = {"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": "@in_channels", "out_channels": 2}
AFNET = {
    "_target_": "monai_attn.nets.AFNet",
    "spatial_dims": 3,
    "in_channels": "@in_channels",
    "out_channels": 2,
    "channels": [2] * 8,
    "n_autofocus": 1,
}
FOCUSNET = {
    "_target_": "monai_attn.nets.FocusNet",
    "spatial_dims": 2,
    "in_channels": "@in_channels",
    "out_channels": 1,
    "channels": [8, 16, 16],
}


def egcnn(main_stream: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "monai_attn.nets.EGCNN", "main_stream": main_stream, "edge_classes": 1}


@pytest.mark.parametrize("value", ["false", "True", 1, None])
def test_a_switch_is_a_truth_value(value):
    assert refused({"save_attention": value}).fix == "give True or False"


def refused(config: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_config(ConfigParser(config))
    return caught.value


@pytest.mark.parametrize(
    ("network", "name", "size", "multiple", "better"),
    [
        (egcnn(SEGRESNET), "crop_size", [30, 48, 32], 8, [32, 48, 32]),
        (egcnn(VNET), "crop_size", [32, 40, 32], 16, [32, 48, 32]),
        (UNET, "image_size", [100, 96], 16, [112, 96]),
    ],
    ids=["SegResNet", "VNet", "UNet"],
)
def test_a_size_that_the_network_cannot_take_is_refused_with_one_that_it_can(network, name, size, multiple, better):
    error = refused({"in_channels": 1, "network_def": network, name: size})
    assert error.what == f"--{name} {size}"
    assert f"needs multiples of {multiple}" in error.problem
    assert error.fix == f'--{name} "{better}"'
    check_config(ConfigParser({"in_channels": 1, "network_def": network, name: better}))


@pytest.mark.parametrize(
    ("network", "size"),
    [(AFNET, [30, 31, 33]), (FOCUSNET, [30, 33]), (egcnn(BASIC_UNET), [30, 33, 34])],
    ids=["AFNet", "FocusNet", "EG-CNN on a BasicUNet, which pads"],
)
def test_networks_that_take_any_size_get_it(network, size):
    check_config(ConfigParser({"in_channels": 1, "network_def": network, "crop_size": size}))


def test_the_check_leaves_the_network_and_the_random_numbers_as_they_are():
    parser = ConfigParser({"in_channels": 1, "network_def": egcnn(SEGRESNET), "crop_size": [16, 16, 16]})
    network = parser.get_parsed_content("network_def")
    torch.manual_seed(0)
    check_config(parser)
    assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(0))
    assert parser.get_parsed_content("network_def") is network
    assert {value.device.type for value in network.state_dict().values()} == {"cpu"}
    assert network.training


def test_a_size_that_fails_for_another_reason_is_left_to_the_run():
    check_config(ConfigParser({"in_channels": 3, "network_def": {**UNET, "in_channels": 1}, "image_size": [30, 30]}))
    check_config(ConfigParser({"in_channels": 1, "network_def": UNET, "image_size": [-1, 30]}))


def test_channels_are_those_of_the_metadata_where_the_configuration_has_none():
    parser = ConfigParser({"network_def": {**UNET, "in_channels": 3}, "image_size": [30, 32]})
    check_config(parser)
    parser["_meta_"] = {"network_data_format": {"inputs": {"image": {"num_channels": 3}}}}
    with pytest.raises(ConfigError, match=r"\[32, 32\]"):
        check_config(parser)


@pytest.mark.parametrize(
    "part",
    [{"loss": {"_target_": "DiceLoss", "softmax": True}}, {"post": [{"_target_": "AsDiscreted", "argmax": True}]}],
)
def test_one_channel_is_refused_where_a_softmax_or_argmax_is(part):
    error = refused({"out_channels": "$len(['lesion'])", **part})
    assert error.what == "--out_channels 1"
    assert "sigmoid" in error.fix
    check_config(ConfigParser({"out_channels": 2, **part}))


def test_one_channel_is_fine_with_sigmoid_and_threshold():
    parts = {"loss": {"_target_": "DiceLoss", "sigmoid": True, "softmax": False}, "post": [{"threshold": 0.5}]}
    check_config(ConfigParser({"out_channels": 1, **parts}))


@pytest.mark.parametrize("device", ["cuda:93", "gpu"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(device):
    error = refused({"device": device})
    assert error.what == f"--device {device}"
    assert error.fix.startswith("this machine has cpu")


@pytest.mark.parametrize("device", ["cpu", "$torch.device('cpu')"])
def test_a_device_that_is_there_is_taken(device):
    check_config(ConfigParser({"imports": ["$import torch"], "device": device}))


def test_a_configuration_without_these_entries_is_none_of_its_business():
    check_config(ConfigParser())


@pytest.mark.parametrize("values", [[2, 1, 4], [2, 1], [3, 1, 2]])
def test_a_region_is_written_as_one_of_its_own_labels(values):
    config = {"regions": [[1, 2], [1], [2]], "region_values": values}
    assert refused(config).problem.endswith("the regions are [[1, 2], [1], [2]]")
    check_config(ConfigParser(config | {"region_values": [2, 1, 2]}))
