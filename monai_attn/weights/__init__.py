# SPDX-License-Identifier: Apache-2.0
"""Weights that the papers' authors trained with their own code, put into the networks of this package.

No code of a file runs: files of plain tensors are read with ``weights_only=True``, those of whole networks (ReLayNet)
by ``monai_attn.weights.records``. The exception is a network in TorchScript (:func:`load_exported`), which is code.
"""

from __future__ import annotations

from monai_attn.weights.autofocus import load_autofocus_weights
from monai_attn.weights.exported import load_exported
from monai_attn.weights.keras import load_keras_weights
from monai_attn.weights.quicknat import load_quicknat_weights
from monai_attn.weights.relaynet import load_relaynet_weights

__all__ = [
    "load_autofocus_weights",
    "load_exported",
    "load_keras_weights",
    "load_quicknat_weights",
    "load_relaynet_weights",
]
