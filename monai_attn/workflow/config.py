# SPDX-License-Identifier: Apache-2.0
"""What can be seen to be wrong in a configuration before any data are read."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

from monai_attn.errors import ConfigError

__all__ = ["check_config"]

_SWITCHES = ("save_attention",)  # the string "false" would be true
_SIZES = ("crop_size", "image_size")  # entries that say what size the network gets
_MULTIPLES = (2, 4, 8, 16, 32, 64)


def check_config(parser: ConfigParser) -> None:
    """Check a bundle's configuration.

    Args:
        parser: the configuration with its overrides.

    Raises:
        ConfigError: if the device is not there, a switch is neither on nor off, a single output channel meets a
            softmax, a region gets a label that is not its own, or the network cannot take the size of the crops.
    """
    _check_device(parser)
    _check_switches(parser)
    _check_channels(parser)
    _check_regions(parser)
    for name in _SIZES:
        if name in parser and "network_def" in parser:
            _check_size(parser, name)


def _check_device(parser: ConfigParser) -> None:
    if "device" not in parser:
        return
    device = parser.get_parsed_content("device")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        accelerator = torch.accelerator.current_accelerator()
        others = [f"{accelerator}:{i}" for i in range(torch.accelerator.device_count())] if accelerator else []
        raise ConfigError(
            f"--device {device}", str(error).splitlines()[0], f"this machine has {', '.join(['cpu', *others])}"
        ) from error


def _check_switches(parser: ConfigParser) -> None:
    for name in _SWITCHES:
        if name in parser and not isinstance(value := parser.get_parsed_content(name), bool):
            raise ConfigError(f"--{name} {value}", "it is not a truth value", "give True or False")


def _check_channels(parser: ConfigParser) -> None:
    if "out_channels" not in parser or parser.get_parsed_content("out_channels") != 1:
        return
    if _has_softmax(parser.get()):
        raise ConfigError(
            "--out_channels 1",
            "the softmax or argmax of one channel is the same for every image",
            "count the background as a class too (2), or use sigmoid and threshold in place of softmax and argmax",
        )


def _has_softmax(config: Any) -> bool:
    if isinstance(config, dict):
        return any(
            (key in ("softmax", "argmax") and value is True) or _has_softmax(value) for key, value in config.items()
        )
    return isinstance(config, list) and any(map(_has_softmax, config))


def _check_regions(parser: ConfigParser) -> None:
    """A region that is written as a label of another one would be scored as absent."""
    if "regions" not in parser or "region_values" not in parser:
        return
    regions, values = (list(parser.get_parsed_content(name)) for name in ("regions", "region_values"))
    if len(values) == len(regions) and all(value in region for value, region in zip(values, regions)):
        return
    raise ConfigError(
        f"--region_values {values}",
        f"a voxel of a region must get one of its labels, and the regions are {regions}",
        "give for each region one of its labels, which the regions after it go over",
    )


def _check_size(parser: ConfigParser, name: str) -> None:
    """Try the size on a copy of the network without data, which computes shapes alone."""
    size = parser.get_parsed_content(name)
    channels = "in_channels" if "in_channels" in parser else "_meta_#network_data_format#inputs#image#num_channels"
    if channels not in parser or min(size) < 1:
        return
    network = copy.deepcopy(parser.get_parsed_content("network_def")).to("meta").eval()
    shape = (1, parser.get_parsed_content(channels))
    if _takes(network, (*shape, *size)):
        return
    multiple = next((m for m in _MULTIPLES if _takes(network, (*shape, *[3 * m] * len(size)))), 1)
    better = [-(-length // multiple) * multiple for length in size]
    if better != list(size) and _takes(network, (*shape, *better)):
        raise ConfigError(
            f"--{name} {list(size)}",
            f"{type(network).__name__} needs multiples of {multiple}",
            f'--{name} "{better}"',
        )


def _takes(network: nn.Module, shape: Sequence[int]) -> bool:
    try:
        with torch.no_grad():
            network(torch.empty(*shape, device="meta"))
    except Exception:  # each network fails in its own way
        return False
    return True
