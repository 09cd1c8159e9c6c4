# SPDX-License-Identifier: Apache-2.0
"""Resample images."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.transforms import Spacingd

__all__ = ["SafeSpacingd"]


class SafeSpacingd(Spacingd):
    """MONAI's ``Spacingd``, for dictionaries that hold more than images.

    From MONAI 1.6.0 on ``Spacingd`` updates every entry whose key begins with ``"<key>_"`` as if it were a dictionary
    of metadata, and fails on the path that MONAI Label puts there. This class hides such entries while it works. All
    arguments, and the inverse, are those of ``Spacingd``. With ``dtype=torch.float32`` the coordinates of the voxels,
    which MONAI holds in double precision, take half the memory.

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
