# SPDX-License-Identifier: Apache-2.0
"""Read bundle configurations and run them with checked overrides."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.networks import nets as monai_nets
from monai.utils import ensure_tuple
from torch import nn

from monai_attn import nets
from monai_attn.data.checking import check_cases
from monai_attn.data.datalist import cases, find_images
from monai_attn.errors import ConfigError, DataError
from monai_attn.handlers.checkpoint import BEST, DESCRIPTION
from monai_attn.handlers.resume import resumed
from monai_attn.run.bundles import find_bundle, named_bundles, named_configs
from monai_attn.run.checks import check_overrides, remember, shaping
from monai_attn.run.options import parts_of
from monai_attn.run.session import start
from monai_attn.weights import load_pretrained

__all__ = ["Workflow", "check_bundle", "components", "read_bundle", "use_pretrained", "with_model"]


_PLACES = {"bundle_root", "checkpoint", "ckpt_dir"}
_NETWORKS = {"": dir(monai_nets), "monai.networks.nets": dir(monai_nets), "monai_attn.nets": nets.__all__}
_CHECKS = [
    f"monai_attn.transforms.{name}" for name in ("SafeLoadImaged", "SafeChannelFirstd", "CheckImaged", "CheckLabeld")
]
_SETTINGS = ("structures", "out_channels", "in_channels", "regions", "region_values", "ignore_index")


def read_bundle(folder: Path, names: Sequence[str], overrides: Mapping[str, Any]) -> ConfigParser:
    """Read a bundle's configuration; later files override earlier ones.

    Raises:
        ConfigError: if there is no such configuration, or see :func:`with_model`.
    """
    files = [str(file) for file in named_configs(folder, names)]
    return _parser(*with_model(files, {"bundle_root": str(folder), **overrides}))


def with_model(files: Sequence[str], overrides: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Add the options in the ``model.json`` beside the weights.

    Overrides take precedence.

    Returns:
        The configurations, including those of the training, and the overrides.

    Raises:
        ConfigError: if an override cannot be used, or the weights do not fit the network that it makes.
        DataError: if ``model.json`` is not one of a training, or an option in it could run code.
    """
    parser = _parser(files, {key: overrides[key] for key in _PLACES & overrides.keys()})
    checkpoint = str(parser.get_parsed_content("checkpoint")) if "checkpoint" in parser else ""
    path, folder, present = Path(checkpoint).parent / DESCRIPTION, Path(files[0]).parent, [Path(f).stem for f in files]
    if not checkpoint or not path.is_file():
        return list(files), check_overrides(files, overrides)
    model = None
    try:
        model = json.loads(path.read_text("utf-8"))
        more, trained = list(model.get("configs", ())), model.get("options")
        is_ours = {*more} <= {file.stem for file in folder.glob("*.json")}
        is_ours = is_ours and {parts_of(key)[0] for key in trained or ()} <= shaping(folder, more)
    except (OSError, ValueError, TypeError, AttributeError):
        is_ours = False
    known, other = named_bundles(), model.get("bundle") if isinstance(model, dict) else ""
    if other in known and known.get(folder.parent.name) == folder.parent and other != folder.parent.name:
        raise DataError(checkpoint, f"it is of a training of {other}", f"give weights of {folder.parent.name}")
    if not is_ours:
        fix = "remove it, and give the options of the training by hand"
        raise DataError(str(path), "it is not of a training of this bundle", fix)
    files = [files[0], *(str(folder / f"{name}.json") for name in more if name not in present), *files[1:]]
    if trained is None:
        return files, check_overrides(files, overrides)
    parser = _parser(files, {})
    trained = {key: value for key, value in trained.items() if parts_of(key)[0] in parser}
    for key in [key for key, value in trained.items() if _runs_code(key, value)]:
        if key not in overrides:
            raise DataError(str(path), f"its option {key} could run code", f"give --{key} by hand")
        del trained[key]
    given = check_overrides(files, {**trained, **overrides})
    then = {key: trained.get(key, parser.get(key)) for key in overrides if parts_of(key)[0] in shaping(folder, more)}
    changed = [key for key in then if then[key] != given[key]]
    if changed and _tensors(before := _parser(files, trained)) != _tensors(_parser(files, given)):
        what = " ".join(f"--{key} {given[key]}" for key in changed)
        said = ", ".join(f"{key} {before.get_parsed_content(key)}" for key in changed)
        problem = f"{checkpoint} has other tensors: {path.name} beside it says {said}"
        raise ConfigError(what, problem, "leave it out, or give other weights")
    return files, given


def _parser(files: Iterable[str], overrides: Mapping[str, Any]) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(list(files))
    parser.update(dict(overrides))
    return parser


def _runs_code(key: str, value: Any) -> bool:
    """Return whether a value is an expression, or a component other than a network."""
    text = json.dumps({parts_of(key)[-1]: value})
    networks = {f'"{home}.{name}"'.replace('".', '"') for home, names in _NETWORKS.items() for name in names}
    targets = re.findall(r'"_target_": (.*?)[,}]', text)
    return '"$' in text or '"%' in text or not networks.issuperset(targets)


def _tensors(parser: ConfigParser) -> dict[str, torch.Size]:
    network = parser.get_parsed_content("network_def")
    return {name: value.shape for name, value in network.state_dict().items()}


def use_pretrained(
    network: nn.Module, pretrained: str, bundle_root: str, *, partial: bool, resume: str | bool, ckpt_dir: str
) -> None:
    """Load pretrained weights, unless a training resumes.

    Args:
        network: the network of the bundle.
        pretrained: a file (:func:`monai_attn.weights.load_pretrained`), ``"shipped"`` for the bundle's own weights, or
            ``""`` for none.
        bundle_root: folder of the bundle.
        partial: whether less than half of the weights may fit.
        resume: see :class:`monai_attn.handlers.TrainingCheckpoint`.
        ckpt_dir: folder of its checkpoints.

    Raises:
        DataError: if the file cannot be read, or too little fits.

    Example:
        ``"$run.use_pretrained(@network_def, @pretrained, @bundle_root, partial=False, resume='', ckpt_dir=@ckpt_dir)"``
    """
    if pretrained and resumed(resume, ckpt_dir) is None:
        path = Path(bundle_root, "models", BEST) if pretrained == "shipped" else pretrained
        load_pretrained(network, path, 0 if partial else 0.5)


def components(parser: ConfigParser, targets: Sequence[str]) -> list[Any]:
    """Instantiate the first component of each class (``_target_``).

    Raises:
        ConfigError: if there is none of the first class.
    """
    found = [next(_find(parser.get(), target), None) for target in targets]
    if found[0] is None:
        raise ConfigError("the configuration", f"it has no component {targets[0]}", "give a configuration that has")
    return [parser.get_parsed_content(path) for path in found if path is not None]


def check_bundle(
    bundle: str,
    *,
    dataset_dir: str | None = None,
    images: Sequence[str] = (),
    sections: Sequence[str] = ("training", "validation"),
    configs: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Iterator[str]:
    """Load every case as a bundle does; yield a report.

    Args:
        bundle: see :func:`monai_attn.run.bundles.find_bundle`.
        dataset_dir: the data set; by default that of the bundle.
        images: check these for inference instead: an image, a folder or a data set, or the files of one image.
        sections: sections of the data set.
        configs: configurations; by default ``train``, or ``inference`` for ``images``.
        overrides: values of entries.

    Raises:
        ConfigError: if the bundle or an override cannot be used.
        DataError: at once, if there are no cases; at the end, if some cannot be used.

    Example:
        ``for line in check_bundle("hippocampus_mri_scse_segmentation", dataset_dir="my_data"): print(line)``
    """
    entries = dict(overrides or {}) | ({"dataset_dir": dataset_dir} if dataset_dir else {})
    parser = read_bundle(find_bundle(bundle), configs or ["inference" if images else "train"], entries)
    if images:
        source, parts = ", ".join(images), {"input": find_images(images[0] if len(images) == 1 else images)}
    else:
        source = str(parser.get_parsed_content("dataset_dir"))
        parts = {section: cases(source, section) for section in sections}
    settings = {key: parser.get_parsed_content(key) for key in _SETTINGS if key in parser.get()}
    yield from check_cases(components(parser, _CHECKS), parts, source, settings)


def _find(config: Any, target: str, path: str = "") -> Iterator[str]:
    parts = list(config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ())
    if isinstance(config, dict) and config.get("_target_") == target:
        yield path
    for key, part in parts:
        yield from _find(part, target, f"{path}#{key}" if path else str(key))


class Workflow(ConfigWorkflow):
    """Run a bundle with checked overrides and short errors.

    It is MONAI's ``ConfigWorkflow`` after :func:`monai_attn.run.start`; ``settings`` are its other arguments and
    overrides.

    Raises:
        ConfigError: if an override names no entry.

    Example:
        ``python -m monai.bundle run_workflow --workflow_name monai_attn.run.Workflow --config_file configs/train.json``
    """

    def __init__(self, config_file: str | Sequence[str], **settings: Any) -> None:
        files = [str(path) for path in ensure_tuple(config_file)]
        name = Path(files[-1]).stem
        start(name)
        own = inspect.signature(ConfigWorkflow.__init__).parameters.keys() - {"tracking"}
        command = with_model(files, {key: value for key, value in settings.items() if key not in own})
        kind = "infer" if Path(files[0]).stem.startswith("inference") else "train"
        super().__init__(command[0], **{"workflow_type": kind, **settings, **command[1]})
        self.command = command

    def initialize(self) -> Any:
        """Evaluate the bundle's ``initialize``."""
        results = super().initialize()
        remember(self.command)
        return results
