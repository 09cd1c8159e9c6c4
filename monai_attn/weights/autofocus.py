# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the authors' code of the Autofocus layer (Qin 2018), https://github.com/yaq007/Autofocus-Layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from monai_attn.blocks.autofocus import AutofocusConv
from monai_attn.nets.afnet import AFNet
from monai_attn.nets.dilated import DilatedResidual
from monai_attn.weights.checkpoint import fill, read_state_dict

__all__ = ["load_autofocus_weights"]

_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def load_autofocus_weights(network: AFNet, source: str | os.PathLike | Mapping[str, Any]) -> AFNet:
    """Load a checkpoint of the authors' code for Basic or AFN-1 to AFN-6 (yaq007/Autofocus-Layer) into an AFNet.

    The network then gives the authors' outputs, with ``padding="official"`` at the size of theirs. Their biases in
    front of batch normalisation, which have no effect in training and which AFNet does without, go into the running
    means.

    Args:
        network: the network, with 3 spatial dimensions, batch normalisation, and the ``n_autofocus``, ``channels`` and
            number of classes of the checkpoint.
        source: the file, or the checkpoint or its ``state_dict`` as a dictionary.

    Returns:
        the network.

    Raises:
        DataError: if the file cannot be read, or entries are missing, left over, or of another shape. The network is
            then as before.

    Example:
        ``load_autofocus_weights(AFNet(3, 3, 5, n_autofocus=4, padding="official"), "AFN4.pth.tar")``
    """
    name, theirs = read_state_dict(source)
    ours, biases = _autofocus_names(network, basic=any(key.startswith("layer3.") for key in theirs))
    for bias, mean in biases.items():
        if bias in theirs and mean in theirs and theirs[bias].shape == theirs[mean].shape:
            theirs[mean] = theirs[mean] - theirs.pop(bias)
    fill(network, theirs, ours, name)
    return network


def _autofocus_names(network: AFNet, basic: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Our names with theirs, and their inert biases with the running mean that takes each in.

    Args:
        network: the network.
        basic: whether the checkpoint is of their class for Basic, which names the blocks in another way.
    """
    layers = {"conv1": "trunk.stem.0", "conv2": "trunk.stem.1"}
    norms = {"bn1": "trunk.stem.0.adn.N", "bn2": "trunk.stem.1.adn.N"}
    behind = {"conv1": "bn1", "conv2": "bn2"}
    others = {"fc": "classifier"}
    blocks = [block for block in network.trunk.blocks if isinstance(block, DilatedResidual)]
    for index, block in enumerate(blocks):
        mine, their = f"trunk.blocks.{index}", f"layer{3 + index}" if basic else f"layers.{index}"
        for number, layer in enumerate((block.first, block.second), 1):
            path = f"{mine}.{'first' if number == 1 else 'second'}"
            layers[f"{their}.conv{number}"] = path
            if isinstance(layer, AutofocusConv):
                prefix = f"{their}.convatt{number if isinstance(block.first, AutofocusConv) else ''}"
                others |= {f"{prefix}1": f"{path}.attention.0", f"{prefix}2": f"{path}.attention.2"}
                scales = range(len(layer.norms))
                norms |= {f"{their}.bn_list{number}.{k}": f"{path}.norms.{k}" for k in scales}
                behind[f"{their}.conv{number}"] = f"{their}.bn_list{number}.0"
            else:
                norms[f"{their}.bn{number}"] = f"{path}.adn.N"
                behind[f"{their}.conv{number}"] = f"{their}.bn{number}"
        if not isinstance(block.shortcut, nn.Identity):
            layers[f"{their}.downsample.0"] = f"{mine}.shortcut"
            norms[f"{their}.downsample.1"] = f"{mine}.shortcut.adn.N"
            behind[f"{their}.downsample.0"] = f"{their}.downsample.1"
    ours = {f"{mine}.conv.weight": f"{their}.weight" for their, mine in layers.items()}
    ours |= {f"{mine}.{entry}": f"{their}.{entry}" for their, mine in norms.items() for entry in _NORM}
    ours |= {f"{mine}.{entry}": f"{their}.{entry}" for their, mine in others.items() for entry in ("weight", "bias")}
    return ours, {f"{conv}.bias": f"{norm}.running_mean" for conv, norm in behind.items()}
