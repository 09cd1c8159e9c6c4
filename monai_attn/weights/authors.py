# SPDX-License-Identifier: Apache-2.0
"""Load the authors' PyTorch weights: Autofocus, QuickNAT, ReLayNet.

- Qin et al.: "Autofocus Layer for Semantic Segmentation", MICCAI 2018, https://github.com/yaq007/Autofocus-Layer
- Roy et al.: "QuickNAT", NeuroImage 2019, https://github.com/ai-med/quickNAT_pytorch
- Roy et al.: "ReLayNet", Biomedical Optics Express 2017, https://github.com/ai-med/relaynet_pytorch
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from monai_attn.errors import ConfigError
from monai_attn.nets import AFNet, ReLayNet, SCSEFCDenseNet, SqueezeExciteFCN
from monai_attn.weights.checkpoint import fill, read_state_dict

__all__ = ["load_autofocus_weights", "load_quicknat_weights", "load_relaynet_weights"]

# how names begin here, and how in the authors' code
_AUTOFOCUS = {
    "trunk.stem.0.conv": "conv1",
    "trunk.stem.0.adn.N": "bn1",
    "trunk.stem.1.conv": "conv2",
    "trunk.stem.1.adn.N": "bn2",
    "classifier": "fc",
}
_AUTOFOCUS_BLOCK = {
    "first.conv": "conv1",
    "first.adn.N": "bn1",
    "first.norms": "bn_list1",
    "first.attention.0": "convatt11",
    "first.attention.2": "convatt12",
    "second.conv": "conv2",
    "second.adn.N": "bn2",
    "second.norms": "bn_list2",
    "second.attention.0": "convatt21",
    "second.attention.2": "convatt22",
    "shortcut.conv": "downsample.0",
    "shortcut.adn.N": "downsample.1",
}
_QUICKNAT_STAGE = {"norm": "batchnorm", "act": "prelu"}
_RELAYNET_STAGE = {"0.conv": "conv", "0.adn.N": "batchnorm", "0.adn.A": "prelu"}


def load_autofocus_weights(network: AFNet, source: str | os.PathLike | Mapping[str, Any]) -> AFNet:
    """Load weights of Basic or AFN-1 to AFN-6 (yaq007/Autofocus-Layer).

    The network then gives the authors' outputs, with ``padding="official"`` at their size. AFNet has no biases before
    batch normalization: the authors' are subtracted from the running means.

    Args:
        network: a network with 3 spatial dimensions, batch normalization, and the ``n_autofocus``, ``channels`` and
            number of classes of the checkpoint. It is changed in place and returned.
        source: the file, or the checkpoint or its ``state_dict`` as a dictionary.

    Raises:
        DataError: if the file cannot be read, or entries are missing, left over, or of another shape. The network is
            then unchanged.

    Example:
        ``load_autofocus_weights(AFNet(3, 3, 5, n_autofocus=4, padding="official"), "AFN4.pth.tar")``
    """
    name, theirs = read_state_dict(source)
    ours = _autofocus_names(network.state_dict(), basic=any(key.startswith("layer3.") for key in theirs))
    for entry, other in ours.items():
        layer, is_conv, _ = entry.partition(".conv.weight")
        mean = ours.get(f"{layer}.adn.N.running_mean", ours.get(f"{layer}.norms.0.running_mean"))
        bias = other.removesuffix("weight") + "bias"
        if is_conv and mean in theirs and bias in theirs and theirs[bias].shape == theirs[mean].shape:
            theirs[mean] = theirs[mean] - theirs.pop(bias)
    fill(network, theirs, ours, name)
    return network


def load_quicknat_weights(network: SCSEFCDenseNet, source: str | os.PathLike | Mapping[str, Any]) -> SCSEFCDenseNet:
    """Load weights of quickNAT_pytorch into an SCSEFCDenseNet.

    The authors' code runs with ``se_block`` ``"NONE"`` (``se=None`` here) and ``"SSE"`` (``se="sse"``). The excitation
    of the bottleneck, which it never calls, is ignored.

    Args:
        network: a network with 2 spatial dimensions, ``bottleneck="dense"``, ``act="prelu"``, batch normalization, and
            the number of filters and classes of the checkpoint. It is changed in place and returned.
        source: see :func:`load_autofocus_weights`.

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
    fill(network, theirs, _ai_med_names(network, 4, _QUICKNAT_STAGE), name)
    return network


def load_relaynet_weights(network: ReLayNet, source: str | os.PathLike | Mapping[str, Any]) -> ReLayNet:
    """Load weights of relaynet_pytorch into a ReLayNet without excitations.

    Args:
        network: a network with 2 spatial dimensions, ``se=None``, and the kernels, activation, number of filters and
            number of classes of the checkpoint; the authors' have kernels 3 high and 7 wide, PReLU, and 9 classes. It
            is changed in place and returned.
        source: see :func:`load_autofocus_weights`.

    Raises:
        DataError: see :func:`load_autofocus_weights`.

    Example:
        ``load_relaynet_weights(ReLayNet(2, 1, 9, se=None, kernel_size=(3, 7), act="prelu"), "relaynet.pth")``
    """
    name, theirs = read_state_dict(source)
    fill(network, theirs, _ai_med_names(network, 1, _RELAYNET_STAGE), name)
    return network


def _autofocus_names(entries: Iterable[str], basic: bool) -> dict[str, str]:
    """Map our entries to the authors', whose Basic names its blocks differently."""
    names = {}
    for entry in entries:
        names[entry] = _translate(entry, _AUTOFOCUS)
        if block := re.match(r"trunk\.blocks\.(\d+)\.", entry):
            other = _translate(entry.removeprefix(block[0]), _AUTOFOCUS_BLOCK)
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
