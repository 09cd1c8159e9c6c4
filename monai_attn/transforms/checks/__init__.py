# SPDX-License-Identifier: Apache-2.0
"""Checks of images and labels that a network could not be trained on, or would segment without sense.

MONAI and its readers pass NaN, labels shifted against their images and much more on without a word. Here a problem is
a :class:`monai_attn.errors.DataError` that names the file, or, where the result is right nevertheless, a warning.
"""

from __future__ import annotations

from monai_attn.transforms.checks.image import CheckImaged
from monai_attn.transforms.checks.label import CheckLabeld, label_values

__all__ = ["CheckImaged", "CheckLabeld", "label_values"]
