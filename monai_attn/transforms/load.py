# SPDX-License-Identifier: Apache-2.0
"""The first transform of every bundle: load a case, and stop if it cannot be meant."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, Literal

from monai.config import KeysCollection
from monai.data import ImageReader
from monai.transforms import LoadImaged
from monai.utils import ensure_tuple

from monai_attn.data.reader import CheckingReader
from monai_attn.errors import DataError
from monai_attn.transforms.checks import CheckPair, CheckVolume
from monai_attn.transforms.label_checks import CheckLabel

__all__ = ["SafeLoadImageD", "SafeLoadImageDict", "SafeLoadImaged"]


class SafeLoadImaged(LoadImaged):
    """MONAI's ``LoadImaged`` with a guard: a case that cannot be meant is an error that names its file.

    Each file is examined before it is loaded (:class:`monai_attn.data.CheckingReader`), images are checked by
    :class:`CheckVolume`, labels by :class:`CheckLabel`, and that labels lie on their images by :class:`CheckPair`. What
    comes out is what ``LoadImaged`` gives, channel first.

    Args:
        keys: keys of the files; a list of files is loaded as the channels of one image.
        spatial_dims: number of spatial dimensions of the images.
        channels: number of channels of the images; any if ``None``.
        label_keys: those of ``keys`` that are labels.
        label_values: the values that labels may have; any whole numbers that are not negative if ``None``.
        nonfinite: ``"error"``, or ``"zero"`` to take voxels that are NaN or infinite as 0.
        constant: ``"warn"``, or ``"error"`` if images without contrast are none to train on.
        assume_orientation: axes, such as ``"RAS"``, of NIfTI files that do not say how they are oriented.
        allow_missing_keys: whether a missing key is passed over.

    Raises:
        DataError: when applied, with the file, what was found, what was expected and what to do.

    Example:
        ``SafeLoadImaged(["image", "label"], 3, 1, label_values=range(3))({"image": "a.nii", "label": "b.nii"})``
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int,
        channels: int | None = None,
        *,
        label_keys: KeysCollection = "label",
        label_values: Iterable[int] | None = None,
        nonfinite: Literal["error", "zero"] = "error",
        constant: Literal["warn", "error"] = "warn",
        assume_orientation: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, ensure_channel_first=True, allow_missing_keys=allow_missing_keys)
        self.label_keys = ensure_tuple(label_keys)
        self.check_label = CheckLabel(spatial_dims, label_values, assume_orientation=assume_orientation)
        self.check_pair = CheckPair()
        self.check_volume = CheckVolume(
            spatial_dims, channels, nonfinite=nonfinite, constant=constant, assume_orientation=assume_orientation
        )

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Load and check the files of a case.

        Args:
            data: dictionary with the paths; other entries are kept.
            reader: reader to use instead of that for the format; what only it knows of the files is not checked.

        Returns:
            a dictionary with images (C, *spatial), float32 with metadata.
        """
        self._check_keys(data)
        item: dict[Hashable, Any] = super().__call__(data, reader or CheckingReader())
        keys = list(self.key_iterator(item))
        images = [key for key in keys if key not in self.label_keys]
        for key in images:
            item[key] = self.check_volume(item[key], [str(file) for file in ensure_tuple(data[key])])
        for key in [key for key in keys if key in self.label_keys]:
            item[key] = self.check_label(item[key])
            for image in images:
                self.check_pair(item[image], item[key])
        return item

    def _check_keys(self, data: Mapping[Hashable, Any]) -> None:
        missing = [key for key in self.keys if key not in data]
        if missing and not self.allow_missing_keys:
            known = next((str(ensure_tuple(data[key])[0]) for key in self.keys if key in data), str(dict(data)))
            raise DataError(known, f"its case has no {missing[0]}", "list that with it, or take the case out")


SafeLoadImageD = SafeLoadImageDict = SafeLoadImaged
