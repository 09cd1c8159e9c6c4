# SPDX-License-Identifier: Apache-2.0
"""Weights of the authors' Keras code of FocusNet (Kaul 2019): focusnet-alpha and TheFocusNetSeries.

Keras numbers layers by kind in the order in which the code makes them (``conv2d``, ``conv2d_1``, …), which is the order
of our modules: attention branch, stem, levels, decoders, head, and the heads of the later variant with their fusion.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import
from numpy.typing import ArrayLike
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from monai_attn.errors import ConfigError, DataError
from monai_attn.nets.focusnet import FocusNet

__all__ = ["load_keras_weights"]

# kind of layer: how Keras names it, the module's class, the names of its tensors in Keras' order
_KINDS: dict[str, tuple[str, type[nn.Module], tuple[str, ...]]] = {
    "convolution": (r"conv\dd", _ConvNd, ("weight", "bias")),
    "batch norm": (r"batch_?norm\w*?", _BatchNorm, ("weight", "bias", "running_mean", "running_var")),
    "dense": (r"dense", nn.Linear, ("weight",)),
}


def load_keras_weights(network: FocusNet, source: str | Path | Mapping[str, Sequence[ArrayLike]]) -> FocusNet:
    """Put weights of the authors' Keras code into a FocusNet made with ``padding="tf"``.

    Args:
        network: network of the same variant and widths; it is changed in place, or not at all if anything mismatches.
        source: Keras' layer names with the arrays of each layer in Keras' order, or the path of an ``.h5`` file that
            Keras' ``save`` or ``save_weights`` wrote (needs h5py).

    Returns:
        the network.

    Raises:
        ConfigError: if the network pads in PyTorch's way, which gives other results with these weights, or h5py is
            missing.
        DataError: if the file cannot be read, or number, kind or shape of the layers differ from the network's.

    Example:
        ``load_keras_weights(FocusNet(2, 3, 1, padding="tf"), "focusnet.h5")``
    """
    if not network.pads_like_tensorflow:
        raise ConfigError(
            "the network", "weights of Keras need TensorFlow's padding", 'make it with FocusNet(..., padding="tf")'
        )
    layers = source if isinstance(source, Mapping) else _read_h5(Path(source))
    origin = "the weights" if isinstance(source, Mapping) else str(source)
    loaded: list[tuple[torch.Tensor, np.ndarray]] = []
    used: set[str] = set()
    for kind, (pattern, module_type, tensors) in _KINDS.items():
        names = sorted((name for name in layers if re.fullmatch(rf"{pattern}(_\d+)?", name)), key=_creation_number)
        modules = [(name, module) for name, module in network.named_modules() if isinstance(module, module_type)]
        if len(names) != len(modules):
            raise DataError(
                origin,
                f"it has {len(names)} {kind} layers, the network {len(modules)}",
                'check variant ("isbi2019" or "series"), gated and the number of channels',
            )
        for name, (path, module) in zip(names, modules):
            loaded += _match(origin, name, [np.asarray(array) for array in layers[name]], path, module, tensors)
        used.update(names)
    unknown = sorted(set(layers) - used)
    if unknown:
        raise DataError(origin, f"the layers {', '.join(unknown)} have no place in the network", "check the source")
    with torch.no_grad():
        for tensor, array in loaded:
            tensor.copy_(torch.from_numpy(np.array(array, dtype=np.float32)))
    return network


def _creation_number(name: str) -> int:
    number = re.search(r"_(\d+)$", name)
    return int(number[1]) if number else 0


def _match(
    origin: str, name: str, arrays: list[np.ndarray], path: str, module: nn.Module, tensors: tuple[str, ...]
) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Pair each tensor of a module with the array for it, in PyTorch's axis order."""
    ours = [getattr(module, tensor) for tensor in tensors if getattr(module, tensor) is not None]
    # Keras: (*kernel, in, out) and (in, out); PyTorch: (out, in, *kernel) and (out, in)
    theirs = [np.moveaxis(array, (-1, -2), (0, 1)) if array.ndim > 1 else array for array in arrays]
    expected, found = ([tuple(tensor.shape) for tensor in part] for part in (ours, theirs))
    if expected != found:
        raise DataError(
            origin,
            f"layer {name} has arrays of shapes {found} (as PyTorch orders axes), {path} needs {expected}",
            "check in_channels, out_channels and channels of the network",
        )
    yield from zip(ours, theirs)


def _read_h5(path: Path) -> dict[str, list[np.ndarray]]:
    """The arrays of every layer that has any, in a file of Keras' ``save`` or ``save_weights``."""
    h5py, available = optional_import("h5py")
    if not available:
        raise ConfigError(str(path), "reading it needs h5py", "pip install h5py")
    try:
        with h5py.File(path, "r") as file:
            root: Any = file.get("model_weights", file)
            names = {layer: root[layer].attrs["weight_names"] for layer in map(_text, root.attrs["layer_names"])}
            return {
                layer: [np.asarray(root[layer][_text(name)]) for name in weights]
                for layer, weights in names.items()
                if len(weights)
            }
    except (OSError, KeyError) as error:
        raise DataError(str(path), f"it is not a weights file of Keras: {error}", "give the .h5 file") from error


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
