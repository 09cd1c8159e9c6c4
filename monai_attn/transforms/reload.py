# SPDX-License-Identifier: Apache-2.0
"""What a file holds, after its tensor has been transformed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import LoadImage, MapTransform
from monai.utils import ImageMetaKey

__all__ = ["ReloadImageD", "ReloadImageDict", "ReloadImaged"]


class ReloadImaged(MapTransform):
    """Replace a transformed image by the content of the file that it came from.

    A prediction that has been brought back to the grid of its file is to be compared with the label as it was drawn,
    not with one that was resampled to the network's grid and back.

    Args:
        keys: keys of the images (C, *spatial), with metadata that name their files.
        allow_missing_keys: do not raise if a key is missing.

    Example:
        ``Compose([Invertd("pred", preprocessing, orig_keys="image"), ReloadImaged("label")])``
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load = LoadImage(image_only=True, ensure_channel_first=True)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Map images with metadata to the contents of their files (C, *spatial), on the same device."""
        reloaded = dict(data)
        for key in self.key_iterator(reloaded):
            image = reloaded[key]
            reloaded[key] = self.load(image.meta[ImageMetaKey.FILENAME_OR_OBJ]).to(image.device)
        return reloaded


ReloadImageD = ReloadImageDict = ReloadImaged
