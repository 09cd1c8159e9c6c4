# SPDX-License-Identifier: Apache-2.0
"""Resample images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Spacingd

__all__ = ["SafeSpacingd"]


class SafeSpacingd(Spacingd):
    """Resample images of dictionaries that hold more than images.

    Since MONAI 1.6.0 ``Spacingd`` takes any entry whose key begins with ``"<key>_"`` for metadata, and fails on the
    path that MONAI Label puts there; here such entries are hidden. Arguments and inverse are those of ``Spacingd``.
    ``dtype=torch.float32`` halves the memory of the coordinates.

    Example:
        >>> spacing = SafeSpacingd(keys="image", pixdim=1.0)
        >>> spacing({"image": torch.ones(1, 4, 4, 4), "image_path": "a.nii"})["image_path"]
        'a.nii'
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Resample images (C, *spatial), and keep all other entries."""
        hidden = {name: value for name, value in data.items() if name not in self.keys and not isinstance(value, dict)}
        visible = {name: value for name, value in data.items() if name not in hidden}
        return {**super().__call__(visible, lazy=lazy), **hidden}
