# SPDX-License-Identifier: Apache-2.0
"""Check the overrides and settings of a bundle."""

from __future__ import annotations

import ast
import copy
import inspect
import pydoc
from collections.abc import Mapping, Sequence
from operator import contains
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ComponentLocator, ConfigParser
from monai.bundle import run as bundle_run
from monai.utils import ensure_tuple
from torch import nn

from monai_attn.errors import ConfigError
from monai_attn.run.options import parse_options, parts_of

__all__ = ["check_command", "check_overrides", "check_settings", "describe_model", "remember", "shaping"]

_MULTIPLES = (2, 4, 8, 16, 32, 64)
_locator = ComponentLocator()
# entries of training and inference that each sets for itself, and entries of labels, which inference has not
_OF_A_RUN = {
    "imports", "bundle_root", "dataset_dir", "assume_orientation", "output_dir", "seed", "device", "amp", "bf16",
    "num_workers", "network", "initialize", "run", "finalize",
}  # fmt: skip
_OF_LABELS = {"ignore_index", "label_map", "regions", "region_names", "scored_classes"}
_command: tuple[list[str], dict[str, Any]] | None = None


def check_overrides(config_files: Sequence[str], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Check overrides and return their parsed values.

    Raises:
        ConfigError: for the first bad override, see ``monai_attn.run.options.parse_options``.

    Example:
        ``check_overrides(["configs/train.json"], {"epochs": 8})``
    """
    entries = ConfigParser.load_config_files([str(path) for path in config_files])
    return parse_options(overrides, {"bundle_root": ".", **entries}, _arguments)


def _arguments(target: str) -> set[str] | None:
    """Return the arguments of a component, None if it takes any."""
    try:
        path = target if "." in target else str(_locator.get_component_module_name(target))
        parameters = inspect.signature(pydoc.locate(path)).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError, pydoc.ErrorDuringImport):
        return None
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    return None if is_open else {parameter.name for parameter in parameters}


def check_command(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]] | None:
    """Return the files and checked overrides of ``monai.bundle run``.

    Of another command, it returns None.

    Raises:
        ConfigError: see :func:`check_overrides`, or if MONAI reads a value in another way than it is meant.
    """
    if not Path(argv[0]).as_posix().endswith("monai/bundle/__main__.py") or list(argv[1:2]) != ["run"]:
        return None
    from fire.parser import DefaultParseValue  # with which MONAI reads its command line

    options: dict[str, Any] = {}
    for word, following in zip(argv, (*argv[1:], "--")):
        if word.startswith("--"):  # `--name=value`, `--name value`, or `--name` alone
            name, equals, value = word[2:].partition("=")
            options[name] = value if equals else "True" if following.startswith("--") else following
    if "args_file" in options:
        options = {**ConfigParser.load_config_file(options["args_file"]), **options}
    files = options.get("config_file", ())
    if isinstance(files, str) and files.startswith(("[", "(")):
        files = ast.literal_eval(files)
    files = [str(file) for file in ensure_tuple(files)]
    own = set(inspect.signature(bundle_run).parameters) - {"tracking"}
    given = {name: value for name, value in options.items() if name not in own}
    overrides = check_overrides(files, given)
    for name, meant in overrides.items():
        read = DefaultParseValue(given[name]) if isinstance(given[name], str) else given[name]
        better, fix = ("$None", "'$None'") if meant is None else (repr(meant), f'"{meant!r}"')
        if read is None or (read not in (meant, better) and meant != (list(read) if isinstance(read, tuple) else read)):
            raise ConfigError(f"--{name} {given[name]}", f"MONAI reads it as {read!r}", f"give --{name} {fix}")
    return files, overrides


def remember(command: tuple[list[str], dict[str, Any]] | None) -> None:
    """Set the files and overrides of this run, if they are known."""
    global _command
    _command = command


def shaping(folder: Path, configs: Sequence[str]) -> set[str]:
    """Return the entries that shape network, classes or preprocessing.

    Args:
        folder: folder of the bundle's configurations.
        configs: names of those that go over ``train`` and ``inference``, such as ``"baselines"``.
    """
    files = [folder / f"{name}.json" for name in ("train", "inference", *configs)]
    train, inference, *others = (
        {parts_of(key)[0] for key in (ConfigParser.load_config_file(file) if file.is_file() else ())} for file in files
    )
    return ((train & inference) - _OF_A_RUN).union(_OF_LABELS, *others)


def describe_model(structures: Sequence[str]) -> dict[str, Any]:
    """Return the bundle, configurations, options and classes for ``model.json``.

    The options are those that evaluation and inference also need, if they are not the bundle's defaults. They are
    missing in a training that another program started, since it may have changed anything.

    Example:
        ``"$run.describe_model(@structures)"``
    """
    about: dict[str, Any] = {"classes": list(structures)}
    if _command is None:
        return about
    files, overrides = [Path(file).absolute() for file in _command[0]], _command[1]
    folder = files[0].parent
    own = [str(file) for file in files if file.parent == folder]
    more = [name for file in own[1:] if not (name := Path(file).stem).startswith("multi_gpu")]
    given: dict[str, Any] = {}
    for file in (file for file in files if file.parent != folder):
        given |= ConfigParser.load_config_file(file)
    given |= overrides
    defaults = ConfigParser(ConfigParser.load_config_files(own))
    keys = [key for key in given if parts_of(key)[0] in shaping(folder, more)]
    options = {key: given[key] for key in keys if key not in defaults or given[key] != defaults[key]}
    return {"bundle": folder.parent.name, "configs": more, "options": options, **about}


def check_settings(
    device: torch.device | str,
    network: nn.Module,
    in_channels: int,
    out_channels: int,
    *,
    crop_size: Sequence[int] = (),
    image_size: Sequence[int] = (),
    softmax: bool = True,
    regions: Sequence[Sequence[int]] = (),
    region_values: Sequence[int] = (),
    save_attention: bool = False,
    dicom_seg: bool = False,
) -> None:
    """Raise if settings of a bundle cannot work together.

    The device must be available, and a copy of the network must take ``crop_size`` (voxels) and ``image_size`` (pixels,
    -1 for any). A ``softmax`` or argmax needs two output channels. Each of the overlapping ``regions``, given by their
    label values, must be written as one of its own labels (``region_values``). ``save_attention`` and ``dicom_seg``
    must be bools, because the string "false" is true.

    Raises:
        ConfigError: with a setting that works, if there is one.

    Example:
        ``"$run.check_settings(@device, @network_def, @in_channels, @out_channels, crop_size=@crop_size)"``
    """
    _check_device(device)
    if softmax and out_channels == 1:
        problem = "the softmax or argmax of one channel is the same for every image"
        fix = "count the background as a class too (2), or use sigmoid and threshold in place of softmax and argmax"
        raise ConfigError("--out_channels 1", problem, fix)
    own = len(region_values) == len(regions) and all(map(contains, regions, region_values))
    if region_values and not own:
        problem = f"a voxel of a region must get one of its labels, and the regions are {list(map(list, regions))}"
        fix = "give for each region one of its labels, which the regions after it go over"
        raise ConfigError(f"--region_values {list(region_values)}", problem, fix)
    for name, switch in {"save_attention": save_attention, "dicom_seg": dicom_seg}.items():
        if not isinstance(switch, bool):
            raise ConfigError(f"--{name} {switch}", "it is not a truth value", "give True or False")
    for name, size in {"crop_size": crop_size, "image_size": image_size}.items():
        if size and min(size) > 0:
            _check_size(name, list(size), network, in_channels)


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        accelerator = torch.accelerator.current_accelerator()
        others = [f"{accelerator}:{i}" for i in range(torch.accelerator.device_count())] if accelerator else []
        fix = f"this machine has {', '.join(['cpu', *others])}"
        raise ConfigError(f"--device {device}", str(error).splitlines()[0], fix) from error


def _check_size(name: str, size: list[int], network: nn.Module, channels: int) -> None:
    """Try the size on the meta device, without data."""
    if isinstance(network, torch.jit.ScriptModule):
        return
    network = copy.deepcopy(network).to("meta").eval()
    if _takes(network, channels, size):
        return
    multiple = next((m for m in _MULTIPLES if _takes(network, channels, [3 * m] * len(size))), 1)
    better = [-(-length // multiple) * multiple for length in size]
    if better != size and _takes(network, channels, better):
        problem = f"{type(network).__name__} needs multiples of {multiple}"
        raise ConfigError(f"--{name} {size}", problem, f'--{name} "{better}"')


def _takes(network: nn.Module, channels: int, size: Sequence[int]) -> bool:
    try:
        with torch.no_grad():
            network(torch.empty(1, channels, *size, device="meta"))
    except Exception:  # each network fails in its own way
        return False
    return True
