# SPDX-License-Identifier: Apache-2.0
"""The guard: images that cannot be meant, and labels beside their images, stop a run before it begins.

MONAI and its readers pass NaN, labels shifted against their images and much more on without a word, and what is learnt
or segmented then is nonsense. A problem is a :class:`monai_attn.errors.DataError` that names the file, or, where the
result is right nevertheless, one line of the log.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor, look_up_option

from monai_attn.errors import DataError
from monai_attn.transforms.grids import check_affine, check_shape, file_of, grid_difference

__all__ = [
    "CheckPair",
    "CheckPairD",
    "CheckPairDict",
    "CheckPaird",
    "CheckVolume",
    "CheckVolumeD",
    "CheckVolumeDict",
    "CheckVolumed",
]

_LOGGER = logging.getLogger(__name__)


class CheckVolume(Transform):
    """Raise unless an image can be trained on or segmented.

    Args:
        spatial_dims: number of spatial dimensions.
        channels: number of channels; any if ``None``.
        nonfinite: what to do with voxels that are NaN or infinite: ``"error"``, or ``"zero"`` to take them as 0 with a
            warning. If all are, that is an error.
        constant: what to do with an image without contrast: ``"warn"`` or ``"error"``.
        assume_orientation: axes, such as ``"RAS"``, of NIfTI files that do not say how they are oriented; an error by
            default.

    Raises:
        DataError: when applied, if the image has other dimensions or channels, one voxel only, complex or (see
            ``nonfinite``) non-finite voxels, no contrast (see ``constant``), a singular affine or no orientation.
        ValueError: if an option has no such choice.

    Example:
        >>> CheckVolume(2, 1)(torch.tensor([[[0.0, 1.0]]]))
        tensor([[[0., 1.]]])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(
        self,
        spatial_dims: int,
        channels: int | None = None,
        *,
        nonfinite: Literal["error", "zero"] = "error",
        constant: Literal["warn", "error"] = "warn",
        assume_orientation: str | None = None,
    ) -> None:
        self.spatial_dims = spatial_dims
        self.channels = channels
        self.nonfinite = look_up_option(nonfinite, ("error", "zero"))
        self.constant = look_up_option(constant, ("warn", "error"))
        self.assume_orientation = assume_orientation

    def __call__(self, img: NdarrayOrTensor, names: Sequence[str] = ()) -> NdarrayOrTensor:
        """Check an image (C, *spatial); ``names`` are its files, by default that in its metadata."""
        names = names or (file_of(img, "the image"),)
        check_shape(img, ", ".join(names), self.spatial_dims, self.channels)
        img = check_affine(img, names[0], self.assume_orientation)
        voxels = convert_to_tensor(img, track_meta=False)
        if len(names) != len(voxels):  # a file with all channels
            names = [f"{names[0]} (channel {channel})" for channel in range(len(voxels))]
        ranges = torch.tensor([[float(bound) for bound in torch.aminmax(channel)] for channel in voxels])
        if not ranges.isfinite().all():  # the range shows every NaN and infinity, without a copy
            return self._zeroed(img, voxels, names)
        flat = (ranges[:, 0] == ranges[:, 1]).nonzero().flatten().tolist()
        for channel in flat:
            problem = f"it has no contrast: every voxel is {ranges[channel, 0]:g}"
            if len(flat) == len(ranges) and self.constant == "error":
                raise DataError(names[channel], problem, "give another image, or take the case out of the data set")
            _LOGGER.warning("%s: %s", names[channel], problem)
        return img

    def _zeroed(self, img: NdarrayOrTensor, voxels: torch.Tensor, names: Sequence[str]) -> NdarrayOrTensor:
        finite = voxels.isfinite()
        for name, good in zip(names, finite):
            count = good.numel() - int(good.sum())
            problem = f"{count:,} of its {good.numel():,} voxels are NaN or infinite"
            if count == good.numel():
                raise DataError(name, problem, "export the image again")
            if count and self.nonfinite == "error":
                fix = 'repair the image; inference takes such voxels as 0 if nonfinite is "zero"'
                raise DataError(name, problem, fix)
            if count:
                _LOGGER.warning("%s: %s; taken as 0", name, problem)
        return convert_to_dst_type(voxels.where(finite, 0), img)[0]


class CheckPair(Transform):
    """Raise unless a label lies on the grid of its image.

    Raises:
        DataError: when applied, if the shapes differ, or, of volumes with metadata, if spacing, direction or origin
            put any voxel more than half a voxel away.

    Example:
        >>> image, label = CheckPair()(torch.zeros(4, 8, 8), torch.zeros(1, 8, 8))
    """

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]  # noqa: RUF012

    def __call__(  # type: ignore[override]
        self, img: NdarrayOrTensor, label: NdarrayOrTensor
    ) -> tuple[NdarrayOrTensor, NdarrayOrTensor]:
        """Check an image (C, *spatial) and its label (1, *spatial), and return them."""
        problem = grid_difference(img, label)
        if problem:
            raise DataError(
                file_of(label, "the label"),
                f"it does not lie on {file_of(img, 'the image')}: {problem}",
                "pair the right files, or resample the label to its image by nearest neighbour",
            )
        return img, label


class CheckVolumed(MapTransform):
    """:class:`CheckVolume` for the images of a dictionary.

    Args:
        keys: keys of the images (C, *spatial).
        spatial_dims: number of spatial dimensions.
        channels: number of channels; any if ``None``.
        nonfinite: see :class:`CheckVolume`.
        constant: see :class:`CheckVolume`.
        assume_orientation: see :class:`CheckVolume`.
        allow_missing_keys: whether a missing key is passed over.

    Example:
        >>> CheckVolumed("image", spatial_dims=2, channels=3)({"image": torch.rand(3, 8, 8)})["image"].shape
        torch.Size([3, 8, 8])
    """

    backend = CheckVolume.backend

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int,
        channels: int | None = None,
        *,
        nonfinite: Literal["error", "zero"] = "error",
        constant: Literal["warn", "error"] = "warn",
        assume_orientation: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.check = CheckVolume(
            spatial_dims, channels, nonfinite=nonfinite, constant=constant, assume_orientation=assume_orientation
        )

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Check the images of a case."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.check(item[key])
        return item


class CheckPaird(MapTransform):
    """:class:`CheckPair` for a dictionary.

    Args:
        keys: key of the image, then those of what has to lie on its grid.
        allow_missing_keys: whether missing keys are passed over.

    Example:
        >>> case = {"image": torch.rand(1, 8, 8), "label": torch.zeros(1, 8, 8)}
        >>> list(CheckPaird(["image", "label"])(case))
        ['image', 'label']
    """

    backend = CheckPair.backend

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Check the images of a case."""
        item = dict(data)
        first, *others = self.key_iterator(item)
        for key in others:
            CheckPair()(item[first], item[key])
        return item


CheckVolumeD = CheckVolumeDict = CheckVolumed
CheckPairD = CheckPairDict = CheckPaird
