# SPDX-License-Identifier: Apache-2.0
"""Files of the authors' PyTorch code of ReLayNet, https://github.com/ai-med/relaynet_pytorch.

Roy et al.: "ReLayNet: retinal layer and fluid segmentation of macular optical coherence tomography using fully
convolutional networks", Biomedical Optics Express 2017, https://arxiv.org/abs/1704.02161.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from monai_attn.nets.relaynet import ReLayNet
from monai_attn.weights.ai_med import ai_med_names
from monai_attn.weights.checkpoint import fill, read_state_dict
from monai_attn.weights.pickled import read_pickled

__all__ = ["load_relaynet_weights"]


def load_relaynet_weights(network: ReLayNet, source: str | os.PathLike | Mapping[str, Any]) -> ReLayNet:
    """Load a network that relaynet_pytorch saved, or a state dict of it, into a ReLayNet without excitations.

    The authors' files hold the whole network as a pickle; no code of the file runs, see
    ``monai_attn.weights.records``. Their networks have kernels 3 high and 7 wide, PReLU, and 9 classes.

    Args:
        network: the network, with 2 spatial dimensions, ``se=None``, and the kernels, activation, number of filters
            and number of classes of the file.
        source: the file, or the state dict or a checkpoint with it as a dictionary.

    Returns:
        the network.

    Raises:
        DataError: if the file cannot be read or names anything besides tensors and such modules, or entries are
            missing, left over, or of another shape. The network is then as before.

    Example:
        ``load_relaynet_weights(ReLayNet(2, 1, 9, se=None, kernel_size=(3, 7), act="prelu"), "relaynet_epoch20.model")``
    """
    name, theirs = read_state_dict(source, read=read_pickled)
    layers = {"0.conv": "conv", "0.adn.N": "batchnorm", "0.adn.A": "prelu"}
    fill(network, theirs, ai_med_names(network, deepest_decoder=1, layers=layers), name)
    return network
