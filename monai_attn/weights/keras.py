# SPDX-License-Identifier: Apache-2.0
"""Load the authors' Keras weights of FocusNet (focusnet-alpha, TheFocusNetSeries).

Keras numbers layers by kind in the order of their creation (``conv2d``, ``conv2d_1``, …), which is the order of our
modules.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import optional_import
from numpy.typing import ArrayLike
from torch import nn

from monai_attn.errors import ConfigError, DataError
from monai_attn.nets import FocusNet
from monai_attn.weights.checkpoint import fill

__all__ = ["load_keras_weights"]

# kind of layer: how Keras names it, the classes of its module, the names of its tensors in Keras' order
_KINDS: dict[str, tuple[str, tuple[type[nn.Module], ...], tuple[str, ...]]] = {
    "convolution": (r"conv\dd", (nn.Conv1d, nn.Conv2d, nn.Conv3d), ("weight", "bias")),
    "batch norm": (
        r"batch_?norm\w*?",
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    ),
    "dense": (r"dense", (nn.Linear,), ("weight",)),
}


def load_keras_weights(network: FocusNet, source: str | os.PathLike | Mapping[str, Sequence[ArrayLike]]) -> FocusNet:
    """Load Keras weights into a FocusNet with ``padding="tf"``.

    Args:
        network: network of the same variant and widths, which is changed in place and returned.
        source: Keras' layer names with the arrays of each layer in Keras' order, or an ``.h5`` file that Keras'
            ``save`` or ``save_weights`` wrote (needs h5py).

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
    for kind, (pattern, classes, tensors) in _KINDS.items():
        matches = filter(None, (re.fullmatch(rf"{pattern}(?:_(\d+))?", name) for name in layers))
        found = [match[0] for match in sorted(matches, key=lambda match: int(match[1] or 0))]
        paths = [path for path, module in network.named_modules() if isinstance(module, classes)]
        if len(found) != len(paths):
            raise DataError(
                origin,
                f"it has {len(found)} {kind} layers, the network {len(paths)}",
                'check variant ("isbi2019" or "series"), gated and the number of channels',
            )
        for name, path in zip(found, paths):
            ours = [entry for tensor in tensors if (entry := f"{path}.{tensor}") in entries]
            names |= {entry: f"{name}/{index}" for index, entry in enumerate(ours)}
    theirs = {
        f"{name}/{index}": _in_pytorch_order(array)
        for name, arrays in layers.items()
        for index, array in enumerate(arrays)
    }
    fill(network, theirs, names, origin)
    return network


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
                layer: [np.asarray(group[os.fsdecode(name)]) for name in group.attrs["weight_names"]]
                for layer, group in groups.items()
            }
    except (OSError, KeyError) as error:
        raise DataError(path, f"it is not a weights file of Keras: {error}", "give the .h5 file") from error
