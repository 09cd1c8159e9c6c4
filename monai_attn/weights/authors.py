# SPDX-License-Identifier: Apache-2.0
"""Load the authors' weights of Autofocus, QuickNAT, ReLayNet and FocusNet.

- Qin et al.: "Autofocus Layer for Semantic Segmentation", MICCAI 2018, https://github.com/yaq007/Autofocus-Layer
- Roy et al.: "QuickNAT", NeuroImage 2019, https://github.com/ai-med/quickNAT_pytorch
- Roy et al.: "ReLayNet", Biomedical Optics Express 2017, https://github.com/ai-med/relaynet_pytorch
- Kaul et al.: "FocusNet", ISBI 2019 (focusnet-alpha, TheFocusNetSeries). Keras numbers its layers by kind in the order
  of their creation (``conv2d``, ``conv2d_1``, …), which is the order of our modules.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import
from numpy.typing import ArrayLike
from torch import nn

from monai_attn.errors import ConfigError, DataError
from monai_attn.nets import AFNet, FocusNet, ReLayNet, SCSEFCDenseNet, SqueezeExciteFCN
from monai_attn.weights.checkpoint import fill, load_weights, read_state_dict

__all__ = [
    "load_autofocus_weights", "load_keras_weights", "load_pretrained", "load_quicknat_weights",
    "load_relaynet_weights",
]  # fmt: skip

Source = str | os.PathLike | Mapping[str, Any]

# how names begin here, and how in the authors' code
_NAMES = json.loads(Path(__file__).with_name("names.json").read_text(encoding="utf-8"))
_MOST_COMPRESSED = 1100  # times, by deflate
# kind of layer: how Keras names it, the classes of its module, the names of its tensors in Keras' order
_KERAS_KINDS: dict[str, tuple[str, tuple[type[nn.Module], ...], tuple[str, ...]]] = {
    "convolution": (r"conv\dd", (nn.Conv1d, nn.Conv2d, nn.Conv3d), ("weight", "bias")),
    "batch norm": (
        r"batch_?norm\w*?",
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    ),
    "dense": (r"dense", (nn.Linear,), ("weight",)),
}


def load_autofocus_weights(network: AFNet, source: Source, least: float | None = None) -> AFNet:
    """Load weights of Basic or AFN-1 to AFN-6 (yaq007/Autofocus-Layer).

    The network then gives the authors' outputs, with ``padding="official"`` at their size. AFNet has no biases before
    batch normalization: the authors' are subtracted from the running means. Their input is FLAIR, T1, T1c, T2.

    Args:
        network: a network with 3 spatial dimensions, batch normalization, and the ``n_autofocus``, ``channels`` and
            number of classes of the checkpoint. It is changed in place and returned.
        source: the file, or the checkpoint or its ``state_dict`` as a dictionary.
        least: see :func:`load_pretrained`; by default all must fit.

    Raises:
        DataError: if the file cannot be read, or entries are missing, left over, or of another shape. The network is
            then unchanged.

    Example:
        ``load_autofocus_weights(AFNet(3, 4, 5, n_autofocus=4, padding="official"), "AFN4.pth.tar")``
    """
    name, theirs = read_state_dict(source)
    ours = _autofocus_names(network.state_dict(), basic=any(key.startswith("layer3.") for key in theirs))
    for entry, other in ours.items():
        layer, is_conv, _ = entry.partition(".conv.weight")
        mean = ours.get(f"{layer}.adn.N.running_mean", ours.get(f"{layer}.norms.0.running_mean"))
        bias = other.removesuffix("weight") + "bias"
        if is_conv and mean in theirs and bias in theirs and theirs[bias].shape == theirs[mean].shape:
            theirs[mean] = theirs[mean] - theirs.pop(bias)
    fill(network, theirs, ours, name, least)
    return network


def load_quicknat_weights(network: SCSEFCDenseNet, source: Source, least: float | None = None) -> SCSEFCDenseNet:
    """Load weights of quickNAT_pytorch into an SCSEFCDenseNet.

    The authors' code runs with ``se_block`` ``"NONE"`` (``se=None`` here) and ``"SSE"`` (``se="sse"``). The excitation
    of the bottleneck, which it never calls, is ignored.

    Args:
        network: a network with 2 spatial dimensions, ``bottleneck="dense"``, ``act="prelu"``, batch normalization, and
            the number of filters and classes of the checkpoint. It is changed in place and returned.
        source: see :func:`load_autofocus_weights`.
        least: see :func:`load_pretrained`.

    Raises:
        ConfigError: if the network's skip connections carry the features before the excitation.
        DataError: see :func:`load_autofocus_weights`.

    Example:
        ``load_quicknat_weights(SCSEFCDenseNet(2, 1, 28, se=None, bottleneck="dense", act="prelu"), "epoch_9.pth.tar")``
    """
    if not network.recalibrated_skip:
        fix = 'build it by SCSEFCDenseNet(..., skip="recalibrated")'
        raise ConfigError("the network", "the authors' skip connections carry the features behind the excitation", fix)
    name, state = read_state_dict(source)
    theirs = {key: value for key, value in state.items() if not key.startswith("bottleneck.SELayer.")}
    # their forward runs decode4, then decode1, decode2 and decode3
    fill(network, theirs, _ai_med_names(network, 4, _NAMES["quicknat_stage"]), name, least)
    return network


def load_relaynet_weights(network: ReLayNet, source: Source, least: float | None = None) -> ReLayNet:
    """Load weights of relaynet_pytorch into a ReLayNet without excitations.

    Args:
        network: a network with 2 spatial dimensions, ``se=None``, and the kernels, activation, number of filters and
            number of classes of the checkpoint; the authors' have kernels 3 high and 7 wide, PReLU, and 9 classes. It
            is changed in place and returned.
        source: see :func:`load_autofocus_weights`.
        least: see :func:`load_pretrained`.

    Raises:
        DataError: see :func:`load_autofocus_weights`.

    Example:
        ``load_relaynet_weights(ReLayNet(2, 1, 9, se=None, kernel_size=(3, 7), act="prelu"), "relaynet.pth")``
    """
    name, theirs = read_state_dict(source)
    fill(network, theirs, _ai_med_names(network, 1, _NAMES["relaynet_stage"]), name, least)
    return network


def load_keras_weights(network: FocusNet, source: Source, least: float | None = None) -> FocusNet:
    """Load Keras weights into a FocusNet with ``padding="tf"``.

    Args:
        network: network of the same variant and widths, which is changed in place and returned.
        source: Keras' layer names with the arrays of each layer in Keras' order, or an ``.h5`` file that Keras'
            ``save`` or ``save_weights`` wrote (needs h5py).
        least: see :func:`load_pretrained`.

    Raises:
        ConfigError: if the network has PyTorch's padding, or h5py is missing.
        DataError: if the file cannot be read, or number, kind or shape of the layers differ from the network's, which
            is then unchanged.

    Example:
        ``load_keras_weights(FocusNet(2, 3, 1, padding="tf"), "focusnet.h5")``
    """
    if not network.pads_like_tensorflow:
        fix = 'build it by FocusNet(..., padding="tf")'
        raise ConfigError("the network", "weights of Keras need TensorFlow's padding", fix)
    origin = "the weights" if isinstance(source, Mapping) else os.fspath(source)
    layers = source if isinstance(source, Mapping) else _read_h5(origin)
    entries = network.state_dict().keys()
    names: dict[str, str] = {}
    for kind, (pattern, classes, tensors) in _KERAS_KINDS.items():
        matches = filter(None, (re.fullmatch(rf"{pattern}(?:_(\d+))?", name) for name in layers))
        found = [match[0] for match in sorted(matches, key=lambda match: int(match[1] or 0))]
        paths = [path for path, module in network.named_modules() if isinstance(module, classes)]
        if len(found) != len(paths):
            fix = 'check variant ("isbi2019" or "series"), gated and the number of channels'
            raise DataError(origin, f"it has {len(found)} {kind} layers, the network {len(paths)}", fix)
        for name, path in zip(found, paths):
            ours = [entry for tensor in tensors if (entry := f"{path}.{tensor}") in entries]
            names |= {entry: f"{name}/{index}" for index, entry in enumerate(ours)}
    theirs = {
        f"{name}/{index}": _in_pytorch_order(array)
        for name, arrays in layers.items()
        for index, array in enumerate(arrays)
    }
    fill(network, theirs, names, origin, least)
    return network


def load_pretrained(network: nn.Module, source: str | os.PathLike, least: float = 0.5) -> None:
    """Load weights that fit by name and shape, for fine-tuning.

    Tensors that do not fit, usually those of the classifier, are logged and not loaded.

    Args:
        network: the network, which is changed in place.
        source: a file with weights of this package or of the authors, whose entries are renamed.
        least: fraction of the network's values that must fit.

    Raises:
        DataError: if the file cannot be read, or too little fits. The network is then unchanged.

    Example:
        ``load_pretrained(SCSEUNet(2, 1, 2), "models/model.pt")``
    """
    if isinstance(network, FocusNet) and Path(source).suffix in (".h5", ".hdf5"):
        load_keras_weights(network, source, least)
        return
    is_theirs = any(key.startswith(("fc.", "encode1.")) for key in read_state_dict(source)[1])
    if isinstance(network, AFNet) and is_theirs:
        load_autofocus_weights(network, source, least)
    elif isinstance(network, SCSEFCDenseNet) and is_theirs:
        load_quicknat_weights(network, source, least)
    elif isinstance(network, ReLayNet) and is_theirs:
        load_relaynet_weights(network, source, least)
    else:
        load_weights(network, source, least=least)


def _autofocus_names(entries: Iterable[str], basic: bool) -> dict[str, str]:
    """Map our entries to the authors', whose Basic names its blocks differently."""
    names = {}
    for entry in entries:
        names[entry] = _translate(entry, _NAMES["autofocus"])
        if block := re.match(r"trunk\.blocks\.(\d+)\.", entry):
            other = _translate(entry.removeprefix(block[0]), _NAMES["autofocus_block"])
            if f"{block[0]}first.attention.0.weight" not in entries:  # the only one of a block has no number
                other = other.replace("convatt2", "convatt")
            names[entry] = f"layer{3 + int(block[1])}.{other}" if basic else f"layers.{block[1]}.{other}"
    return names


def _ai_med_names(network: SqueezeExciteFCN, deepest_decoder: int, stage: Mapping[str, str]) -> dict[str, str]:
    """Map our entries to those of quickNAT_pytorch and relaynet_pytorch.

    ``deepest_decoder`` is the number of the decoder that runs first; the others follow from 1.
    """
    names = {}
    depth = len(network.decoders)
    for entry in network.state_dict():
        place, rest = entry.split(".", 1)
        other = place.removesuffix("_se")
        if place.startswith(("encoder", "decoder")):
            index, rest = rest.split(".", 1)
            first = deepest_decoder if place.startswith("decoder") else 1
            other = f"{place[:6]}{(int(index) + first - 1) % depth + 1}"
        part = ".SELayer" if place.endswith("_se") else ".conv" if place == "classifier" else ""
        names[entry] = f"{other}{part}.{_translate(rest, stage)}"
    return names


def _translate(name: str, beginnings: Mapping[str, str]) -> str:
    ours = next(filter(name.startswith, beginnings), "")
    return beginnings.get(ours, "") + name.removeprefix(ours)


def _in_pytorch_order(array: ArrayLike) -> torch.Tensor:
    """Convert Keras' (*kernel, in, out) and (in, out) to PyTorch's (out, in, *kernel) and (out, in)."""
    array = np.array(array, dtype=np.float32)
    return torch.from_numpy(np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array).contiguous()


def _read_h5(path: str) -> dict[str, list[np.ndarray]]:
    """Read the arrays of every layer from a file of Keras' ``save`` or ``save_weights``."""
    h5py, available = optional_import("h5py")
    if not available:
        raise ConfigError(path, "reading it needs h5py", "pip install h5py")
    try:
        with h5py.File(path, "r") as file:
            root: Any = file.get("model_weights", file)
            groups = {layer: root[layer] for layer in map(os.fsdecode, root.attrs["layer_names"])}
            return {
                layer: [_values_of(group[os.fsdecode(name)]) for name in group.attrs["weight_names"]]
                for layer, group in groups.items()
            }
    except (OSError, KeyError, ValueError) as error:
        raise DataError(path, f"it is not a weights file of Keras: {error}", "give the .h5 file") from error


def _values_of(dataset: Any) -> np.ndarray:
    """Return an array of a file, before memory is taken for values that are not there."""
    if dataset.nbytes > _MOST_COMPRESSED * max(dataset.id.get_storage_size(), 1):
        raise ValueError(f"{dataset.name} is larger than what it stores")
    return np.asarray(dataset)
