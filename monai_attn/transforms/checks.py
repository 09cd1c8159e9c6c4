# SPDX-License-Identifier: Apache-2.0
"""Check images and labels."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor, look_up_option

from monai_attn.data.checking import MANY_VALUES, label_values, map_labels
from monai_attn.data.reader import SIXTEEN_BITS
from monai_attn.errors import DataError
from monai_attn.files import first_of
from monai_attn.transforms.grid import check_affine, check_pair, check_shape, files_of, fit_channels, warn_if_larger
from monai_attn.transforms.regions import EachImaged

__all__ = ["CheckImaged", "CheckLabeld", "label_values"]


_TISSUES = 100  # Hounsfield units between which fat, water and muscle lie
_MOST_HOUNSFIELD = 32767  # of metal, in 16 bits
_LOGGER = logging.getLogger(__name__)


class CheckImaged(EachImaged):
    """Check images: shape, channels, NaN, contrast, affine and orientation.

    Errors name the image's file, if it has one.

    Args:
        keys, allow_missing_keys: see MONAI's ``MapTransform``; images (C, *spatial).
        spatial_dims, channels: number of spatial dimensions, and of channels (any if ``None``).
        nonfinite: ``"error"`` for voxels that are NaN or infinite, or ``"zero"`` to replace them by 0 with a warning.
            If all are, that is an error.
        constant: ``"warn"`` or ``"error"`` for images without contrast.
        window: values that the bundle scales to 0 and 1. If the lower one is not negative, negative values are an
            error: in Hounsfield units, the lungs would become 0. For pictures it may be ``[0, 255]``; those of 16 bits,
            or of fractions up to 1, are then scaled to it, with a warning.
        assume_orientation: axes, such as ``"RAS"``, for NIfTI files without an orientation; an error by default.
        hounsfield: whether to warn where values cannot be those of CT in Hounsfield units.
        field_of_view: extent in mm (RAS) of the largest images of the training; much larger volumes give a warning.

    Raises:
        DataError: when applied, for other dimensions or channels, a single voxel, complex or non-finite voxels, values
            that the window does not fit, no contrast, a singular affine or no orientation.
        ValueError: if an option is unknown.

    Example:
        >>> CheckImaged("image", spatial_dims=2, channels=1)({"image": torch.tensor([[[0.0, 1.0]]])})
        {'image': tensor([[[0., 1.]]])}
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int,
        channels: int | None = None,
        *,
        nonfinite: Literal["error", "zero"] = "error",
        constant: Literal["warn", "error"] = "warn",
        window: Sequence[float] | None = None,
        assume_orientation: str | None = None,
        hounsfield: bool = False,
        field_of_view: Sequence[float] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spatial_dims = spatial_dims
        self.channels = channels
        self.nonfinite = look_up_option(nonfinite, ("error", "zero"))
        self.constant = look_up_option(constant, ("warn", "error"))
        self.window = window
        self.assume_orientation = assume_orientation
        self.hounsfield = hounsfield
        self.field_of_view = field_of_view

    def convert(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Return an image that has passed the checks."""
        files = files_of(img, "the image")
        if self.spatial_dims == 2:
            stored, img = len(img), fit_channels(img, self.channels)
            if stored != len(img):
                _LOGGER.warning("%s: read with %d instead of %d channels", files[0], len(img), stored)
        check_shape(img, ", ".join(files), self.spatial_dims, self.channels)
        img = check_affine(img, files[0], self.assume_orientation)
        if self.field_of_view is not None:
            warn_if_larger(img, files[0], self.field_of_view)
        voxels = convert_to_tensor(img, track_meta=False)
        one_file = len(files) != len(voxels)
        names = [f"{files[0]} (channel {channel})" for channel in range(len(voxels))] if one_file else files
        ranges = _ranges(voxels)
        if not ranges.isfinite().all():  # the range shows every NaN and infinity, without a copy
            img = convert_to_dst_type(self._set_to_zero(voxels, names), img)[0]
            ranges = _ranges(convert_to_tensor(img, track_meta=False))
        if self.window is not None and self.window[0] >= 0 > ranges.min():
            problem = f"its values begin at {ranges.min():g} (Hounsfield units?), and the window at {self.window[0]:g}"
            raise DataError(files[0], problem, "give --window [-1000,400]")
        low, high = float(ranges.min()), float(ranges.max())
        if self.hounsfield and not (low <= -_TISSUES and _TISSUES <= high <= _MOST_HOUNSFIELD):
            found = f"its values go from {low:g} to {high:g}"
            _LOGGER.warning("%s: %s, expected Hounsfield units, from about -1000 (air) to 1000 (bone)", files[0], found)
        if self.spatial_dims == 2 and self.window is not None and list(self.window) == [0, 255]:
            img = _as_bytes(img, files[0], float(ranges.max()))
        flat = (ranges[:, 0] == ranges[:, 1]).nonzero().flatten().tolist()
        for channel in flat:
            problem = f"it has no contrast: every voxel is {ranges[channel, 0]:g}"
            if len(flat) == len(ranges) and self.constant == "error":
                raise DataError(names[channel], problem, "give another image, or take the case out of the data set")
            _LOGGER.warning("%s: %s", names[channel], problem)
        return img

    def _set_to_zero(self, voxels: torch.Tensor, names: list[str]) -> torch.Tensor:
        finite = voxels.isfinite()
        for name, good in zip(names, finite):
            count = good.numel() - int(good.sum())
            problem = f"{count:,} of its {good.numel():,} voxels are NaN or infinite"
            if count == good.numel():
                raise DataError(name, problem, "export the image again")
            if count and self.nonfinite == "error":
                fix = "repair the image; in inference, --nonfinite zero takes such voxels as 0"
                raise DataError(name, problem, fix)
            if count:
                _LOGGER.warning("%s: %s; taken as 0", name, problem)
        return voxels.where(finite, 0)


def _ranges(voxels: torch.Tensor) -> torch.Tensor:
    """Return the smallest and the largest value of each channel."""
    return torch.tensor([[float(bound) for bound in torch.aminmax(channel)] for channel in voxels])


def _as_bytes(picture: NdarrayOrTensor, name: str, highest: float) -> NdarrayOrTensor:
    """Return a picture with values from 0 to 255."""
    if highest <= 255 and not (highest <= 1 and (picture % 1 > 0).any()):
        return picture
    if highest > 255 and not getattr(picture, "meta", {}).get(SIXTEEN_BITS):
        problem = f"its values go up to {highest:g}, expected those of a picture, 0 to 255"
        raise DataError(name, problem, "save it with 8 bits for each color")
    factor = 1 / 257 if highest > 255 else 255.0  # 16 bits, or fractions
    _LOGGER.warning("%s: its values up to %g are scaled to 0 to 255, by %.4g", name, highest, factor)
    return picture * factor


class CheckLabeld(MapTransform):
    """Check labels: class indices on the grid of their image.

    Label values can be mapped first. Empty labels give a warning.

    Args:
        keys, allow_missing_keys: see MONAI's ``MapTransform``; label maps (1, *spatial).
        image_key: key of the image (C, *spatial), checked before.
        values: the allowed values; any whole numbers that are not negative if ``None``.
        label_map: new values by those in the files, such as ``{255: 1}``; others stay.
        assume_orientation: see :class:`CheckImaged`.

    Raises:
        DataError: when applied, for several channels, other values, a singular affine, no orientation or another shape
            than the image's, or if, in volumes with metadata, any voxel is more than half a voxel away.

    Example:
        >>> case = {"image": torch.rand(1, 1, 2), "label": torch.tensor([[[0, 2]]])}
        >>> CheckLabeld("label", values=range(3))(case)["label"]
        tensor([[[0, 2]]])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "image",
        values: Iterable[int] | None = None,
        *,
        label_map: Mapping[Any, int] | None = None,
        assume_orientation: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.label_map = label_map
        self.values = None if values is None else sorted(values)
        self.assume_orientation = assume_orientation
        self._seen: set[float] = set()

    def absent(self, names: Sequence[str]) -> list[str]:
        """Return the classes 1, 2, … that no label has had so far."""
        numbered = enumerate(names if self._seen else (), 1)
        return [name for value, name in numbered if value in (self.values or ()) and value not in self._seen]

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Check the labels of a case."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._check(item[key], item[self.image_key])
        return item

    def _check(self, label: NdarrayOrTensor, image: NdarrayOrTensor) -> NdarrayOrTensor:
        name = files_of(label, "the label")[0]
        label = map_labels(label, self.label_map)
        if label.shape[0] > 1:
            if label.ndim == 3 and len(label) in (3, 4) and (label.sum(0) != label.max()).any():
                problem = f"it is in color ({len(label)} channels that differ), expected one label map"
                raise DataError(name, problem, "save the number of the class of every pixel in one gray channel")
            problem = f"it has {label.shape[0]} channels or volumes (one-hot?), expected one label map"
            raise DataError(name, problem, "save the class of every voxel, the argmax over the channels")
        check_shape(label, name, image.ndim - 1, 1)
        found = label_values(label)
        wrong = [value for value in found if not self._may_be(value)]
        if wrong:
            raise DataError(name, *self._explain(wrong, found, name))
        self._seen.update(found)
        if found == [0]:
            _LOGGER.warning("%s: the label is empty", name)
        label = check_affine(label, name, self.assume_orientation)
        check_pair(image, label, files_of(image, "the image")[0], name)
        return label

    def _may_be(self, value: float) -> bool:
        return value in self.values if self.values is not None else value >= 0 and float(value).is_integer()

    def _explain(self, wrong: list[float], found: list[float], name: str) -> tuple[str, str]:
        """Return problem and fix; ``found`` are all distinct values."""
        allowed = "whole numbers" if self.values is None else ", ".join(map(str, self.values))
        shown = [f"{value:g}" for value in wrong[:6]]  # there may be a NaN for each voxel
        problem = f"it has the values {first_of(shown, 5)}, expected {allowed}"
        if not np.isfinite(wrong).all():
            return problem, "repair the label"
        if name.lower().endswith((".jpg", ".jpeg")):
            return f"{problem}; JPEG blurs them", "export the label again, as PNG"
        if len(found) > MANY_VALUES:
            return f"{problem}; it looks like an image", "give the label, and see that image and label are not swapped"
        if not all(float(value).is_integer() for value in wrong):
            return problem, "save the label as integers; if you resample it, by nearest neighbor"
        free = [value for value in self.values or () if value > 0 and value not in found]
        free = [1] * len(wrong) if self.values in (None, [0, 1]) else free  # all foreground is one structure
        pairs = ", ".join(f"{value:g}: {number}" for value, number in zip(wrong, free))
        if len(free) == len(wrong):
            return problem, f'map the values, such as --label_map "{{{pairs}}}", or name all structures'
        return problem, "map the values of all labels together: `monai-attn check BUNDLE -d DATA` says how"
