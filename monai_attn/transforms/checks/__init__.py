# SPDX-License-Identifier: Apache-2.0
"""Check images and labels before training or inference.

MONAI and its readers pass on NaN, labels shifted against their images and much more without a warning. Here a problem
is a :class:`monai_attn.errors.DataError` that names the file or, where the result is right nevertheless, a warning.
"""

from __future__ import annotations

from monai_attn.transforms.checks.image import CheckImaged
from monai_attn.transforms.checks.label import CheckLabeld, label_values

__all__ = ["CheckImaged", "CheckLabeld", "label_values"]
