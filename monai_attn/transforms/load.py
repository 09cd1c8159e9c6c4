# SPDX-License-Identifier: Apache-2.0
"""Load images safely."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data import ImageReader
from monai.data.utils import is_no_channel
from monai.transforms import EnsureChannelFirst, LoadImage, LoadImaged
from monai.utils import MetaKeys, ensure_tuple

from monai_attn.data.checking import map_labels
from monai_attn.data.reader import CheckingReader
from monai_attn.errors import DataError
from monai_attn.transforms.grid import CHANNEL_FILES, files_of
from monai_attn.transforms.regions import EachImaged

__all__ = ["ReloadImaged", "SafeChannelFirstd", "SafeLoadImaged"]


class SafeLoadImaged(LoadImaged):
    """Load images with metadata, float32, after checking their files.

    The reader is :class:`monai_attn.data.CheckingReader`, because MONAI's readers load damaged files and try one format
    after the other. A list of files is loaded as the channels of one image.

    Raises:
        DataError: when applied, with the file, the problem and the fix.

    Example:
        ``SafeLoadImaged(["image", "label"])({"image": "a.nii", "label": "b.nii"})``
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Load the files of a case, by default with ``CheckingReader``."""
        missing = [key for key in self.keys if key not in data]
        if missing and not self.allow_missing_keys:
            known = next((str(ensure_tuple(data[key])[0]) for key in self.keys if key in data), str(dict(data)))
            raise DataError(known, f"its case has no {missing[0]}", "list that with it, or take the case out")
        item: dict[Hashable, Any] = super().__call__(data, reader or CheckingReader())  # threads share no reader
        for key in self.key_iterator(item):
            files = ensure_tuple(data[key])
            if len(files) > 1:  # MONAI keeps the first one
                item[key].meta[CHANNEL_FILES] = [str(file) for file in files]
        return item


class SafeChannelFirstd(EachImaged):
    """Move the channel axis to the front, if necessary.

    Unlike MONAI's ``EnsureChannelFirstd``, it accepts images that are channel first already or have no metadata.

    Example:
        >>> SafeChannelFirstd("image")({"image": torch.zeros(1, 8, 8)})["image"].shape
        torch.Size([1, 8, 8])
    """

    backend = EnsureChannelFirst.backend

    def convert(self, image: Any) -> Any:
        """Return an image (C, *spatial)."""
        meta: dict[str, Any] = getattr(image, "meta", {})
        channel_dim, shape = meta.get(MetaKeys.ORIGINAL_CHANNEL_DIM), tuple(meta.get(MetaKeys.SPATIAL_SHAPE, ()))
        if channel_dim is None:
            return image
        is_first = image.ndim > len(shape) > 0 if is_no_channel(channel_dim) else image.shape[1:] == shape
        return image if is_first else EnsureChannelFirst()(image)


class ReloadImaged(EachImaged):
    """Reload images from their files, without any preprocessing.

    An inverted prediction is then compared with the original label, not with one that was resampled twice.

    Args:
        keys, allow_missing_keys: see MONAI's ``MapTransform``.
        label_map: see :class:`CheckLabeld`.

    Example:
        ``Compose([Invertd("pred", preprocessing, orig_keys="image"), ReloadImaged("label")])``
    """

    def __init__(
        self, keys: KeysCollection, label_map: Mapping[Any, int] | None = None, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_map = label_map
        self.load = LoadImage(image_only=True, ensure_channel_first=True)

    def convert(self, image: Any) -> Any:
        """Return the content of the image's file on the device of the image."""
        stored = self.load(files_of(image, ""), CheckingReader())
        return map_labels(stored.to(image.device), self.label_map)
