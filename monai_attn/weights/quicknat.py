# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of the authors' PyTorch code of QuickNAT, https://github.com/ai-med/quickNAT_pytorch.

Roy et al.: "QuickNAT: A fully convolutional network for quick and accurate segmentation of neuroanatomy", NeuroImage
2019, https://arxiv.org/abs/1801.04161.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from monai_attn.errors import ConfigError
from monai_attn.nets.fcdensenet import SCSEFCDenseNet
from monai_attn.weights.ai_med import ai_med_names
from monai_attn.weights.checkpoint import fill, read_state_dict
from monai_attn.weights.pickled import read_pickled

__all__ = ["load_quicknat_weights"]


def load_quicknat_weights(network: SCSEFCDenseNet, source: str | os.PathLike | Mapping[str, Any]) -> SCSEFCDenseNet:
    """Load a network of quickNAT_pytorch into an SCSEFCDenseNet with ``bottleneck="dense"`` and ``act="prelu"``.

    The file may hold a checkpoint of the authors' solver, a state dict, or the whole network as a pickle, of which no
    code runs, see ``monai_attn.weights.records``. The authors' code runs with ``se_block`` ``"NONE"`` (``se=None``
    here) and ``"SSE"`` (``se="sse"``). The excitation that it makes for the bottleneck and never calls is left out.

    Args:
        network: the network, with 2 spatial dimensions, batch normalisation, and the number of filters and classes of
            the checkpoint.
        source: the file, or the checkpoint or its ``state_dict`` as a dictionary.

    Returns:
        the network.

    Raises:
        ConfigError: if the network passes features over its skip connections as they are before the excitation.
        DataError: if the file cannot be read or names anything besides tensors and such modules, or entries are
            missing, left over, or of another shape. The network is then as before.

    Example:
        ``load_quicknat_weights(SCSEFCDenseNet(2, 1, 28, se=None, bottleneck="dense", act="prelu"), "epoch_9.pth.tar")``
    """
    if not network.recalibrated_skip:
        raise ConfigError(
            "the network",
            "the skip connections of quickNAT_pytorch carry the features behind the excitation",
            'make it with SCSEFCDenseNet(..., skip="recalibrated")',
        )
    name, state = read_state_dict(source, read=read_pickled)
    theirs = {key: value for key, value in state.items() if not key.startswith("bottleneck.SELayer.")}
    # their forward runs decode4, then decode1, decode2 and decode3
    ours = ai_med_names(network, deepest_decoder=4, layers={"norm": "batchnorm", "act": "prelu"})
    fill(network, theirs, ours, name)
    return network
