# SPDX-License-Identifier: Apache-2.0
"""How the PyTorch codes of ai-med (quickNAT_pytorch, relaynet_pytorch) name the parts of an encoder-decoder."""

from __future__ import annotations

from collections.abc import Mapping

from monai_attn.nets.fcn import SqueezeExciteFCN

__all__ = ["ai_med_names"]


def ai_med_names(network: SqueezeExciteFCN, *, deepest_decoder: int, layers: Mapping[str, str]) -> dict[str, str]:
    """For each entry of a network's state dict its name in the authors' code.

    Args:
        network: the network.
        deepest_decoder: number of the decoder that runs first; the others follow from 1.
        layers: how the name of a layer inside a stage begins here, and how it does there.
    """
    names = {}
    depth = len(network.decoders)
    for path in network.state_dict():
        place, rest = path.split(".", 1)
        stage = place.removesuffix("_se")
        if place.startswith(("encoder", "decoder")):
            index, rest = rest.split(".", 1)
            first = deepest_decoder if place.startswith("decoder") else 1
            stage = f"{place[:6]}{(int(index) + first - 1) % depth + 1}"
        part = ".SELayer" if place.endswith("_se") else ".conv" if place == "classifier" else ""
        for ours, theirs in layers.items():
            if rest.startswith(ours):
                rest = theirs + rest.removeprefix(ours)
        names[path] = f"{stage}{part}.{rest}"
    return names
