# SPDX-License-Identifier: Apache-2.0
"""Check images."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Literal

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor, look_up_option

from monai_attn.errors import DataError
from monai_attn.transforms.checks.grid import check_affine, check_shape, files_of

__all__ = ["CheckImaged"]

_LOGGER = logging.getLogger(__name__)


class CheckImaged(MapTransform):
    """Raise unless images can be trained on or segmented.

    They may come from a file, whose name is then in the error, or be tensors or arrays from anywhere.

    Args:
        keys: keys of the images (C, *spatial).
        spatial_dims: number of spatial dimensions.
        channels: number of channels; any if ``None``.
        nonfinite: what to do with voxels that are NaN or infinite: ``"error"``, or ``"zero"`` to set them to 0 with a
            warning. If all are, that is an error.
        constant: what to do with an image without contrast: ``"warn"`` or ``"error"``.
        assume_orientation: axes, such as ``"RAS"``, of NIfTI files that do not give their orientation; an error by
            default.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        DataError: when applied, if an image has other dimensions or channels, one voxel only, complex or (see
            ``nonfinite``) non-finite voxels, no contrast (see ``constant``), a singular affine or no orientation.
        ValueError: if an option has no such choice.

    Example:
        >>> CheckImaged("image", spatial_dims=2, channels=1)({"image": torch.tensor([[[0.0, 1.0]]])})
        {'image': tensor([[[0., 1.]]])}
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 (MONAI's spelling)

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
        self.spatial_dims = spatial_dims
        self.channels = channels
        self.nonfinite = look_up_option(nonfinite, ("error", "zero"))
        self.constant = look_up_option(constant, ("warn", "error"))
        self.assume_orientation = assume_orientation

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Check the images of a case."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._check(item[key])
        return item

    def _check(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        files = files_of(img, "the image")
        check_shape(img, ", ".join(files), self.spatial_dims, self.channels)
        img = check_affine(img, files[0], self.assume_orientation)
        voxels = convert_to_tensor(img, track_meta=False)
        one_file = len(files) != len(voxels)
        names = [f"{files[0]} (channel {channel})" for channel in range(len(voxels))] if one_file else files
        ranges = torch.tensor([[float(bound) for bound in torch.aminmax(channel)] for channel in voxels])
        if not ranges.isfinite().all():  # the range shows every NaN and infinity, without a copy
            return convert_to_dst_type(self._set_to_zero(voxels, names), img)[0]
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
                fix = 'repair the image; inference takes such voxels as 0 if nonfinite is "zero"'
                raise DataError(name, problem, fix)
            if count:
                _LOGGER.warning("%s: %s; taken as 0", name, problem)
        return voxels.where(finite, 0)
