# SPDX-License-Identifier: Apache-2.0
"""Load checkpoints, and the papers' authors' weights.

Checkpoints must be state dicts, read by ``torch.load(weights_only=True)``, so no code of a file runs.
"""

from __future__ import annotations

from monai_attn.weights.authors import (
    load_autofocus_weights,
    load_keras_weights,
    load_pretrained,
    load_quicknat_weights,
    load_relaynet_weights,
)
from monai_attn.weights.checkpoint import load_weights

__all__ = [
    "load_autofocus_weights", "load_keras_weights", "load_pretrained", "load_quicknat_weights",
    "load_relaynet_weights", "load_weights",
]  # fmt: skip
