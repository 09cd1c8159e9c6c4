# SPDX-License-Identifier: Apache-2.0
"""Weights that the papers' authors trained with their own code, put into the networks of this package.

Nothing here unpickles a file.
"""

from __future__ import annotations

from monai_attn.weights.autofocus import load_autofocus_weights
from monai_attn.weights.keras import load_keras_weights

__all__ = ["load_autofocus_weights", "load_keras_weights"]
