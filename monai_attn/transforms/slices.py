# SPDX-License-Identifier: Apache-2.0
"""Crop 2D slices of volumes for training."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.transforms.traits import MultiSampleTrait
from monai.utils import ImageMetaKey, convert_to_tensor

__all__ = ["RandSlicesd"]


class RandSlicesd(Randomizable, MapTransform, MultiSampleTrait):
    """Crop random slices of a volume, preferably with foreground.

    Use it after the cached, deterministic transforms. Slices are views of the volume and only keep the name of its
    file. As in MONAI's ``RandCropByPosNegLabeld``, a volume gives ``num_samples`` items of the batch.

    Args:
        keys, allow_missing_keys: see MONAI's ``MapTransform``; volumes (C, *spatial) of one spatial shape.
        label_key: key of the label; voxels above 0 are foreground.
        spatial_dim: slicing axis; in RAS orientation 0 sagittal, 1 coronal, 2 axial.
        num_samples: number of slices for each volume.
        pos, neg: ``pos / (pos + neg)`` is the probability of a slice with foreground, if the volume has both kinds.

    Raises:
        ValueError: if ``num_samples`` is below 1, or ``pos`` and ``neg`` are no weights.

    Example:
        >>> volume = {"image": torch.rand(1, 8, 9, 10), "label": torch.ones(1, 8, 9, 10)}
        >>> slices = RandSlicesd(["image", "label"], "label", spatial_dim=1, num_samples=4)(volume)
        >>> len(slices), slices[0]["image"].shape
        (4, torch.Size([1, 8, 10]))
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_key: str,
        *,
        spatial_dim: int = 2,
        num_samples: int = 1,
        pos: float = 1.0,
        neg: float = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}.")
        if pos < 0 or neg < 0 or pos + neg == 0:
            raise ValueError(f"pos and neg must be non-negative and not both 0, got pos={pos}, neg={neg}.")
        self.label_key = label_key
        self.axis = spatial_dim + 1
        self.num_samples = num_samples
        self.pos_ratio = pos / (pos + neg)
        self.indices: list[int] = []

    def randomize(self, label: torch.Tensor) -> None:
        """Draw slices by their label (C, *spatial)."""
        other_axes = [axis for axis in range(label.ndim) if axis != self.axis]
        has_foreground = label.amax(dim=other_axes) > 0
        with_foreground, without = has_foreground.nonzero().flatten(), (~has_foreground).nonzero().flatten()
        self.indices = []
        for _ in range(self.num_samples):
            wanted, other = with_foreground, without
            if self.R.random() >= self.pos_ratio:
                wanted, other = other, wanted
            candidates = wanted if len(wanted) else other
            self.indices.append(int(candidates[self.R.randint(len(candidates))]))

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        """Return ``num_samples`` cases of slices (C, *spatial without the axis)."""
        keys = list(self.key_iterator(data))
        self.randomize(convert_to_tensor(data[self.label_key], track_meta=False))
        return [{**data, **{key: self._select(data[key], index) for key in keys}} for index in self.indices]

    def _select(self, volume: Any, index: int) -> torch.Tensor:
        """Return a slice, with the name of its file only."""
        image = convert_to_tensor(volume, track_meta=False).select(self.axis, index)
        name = getattr(volume, "meta", {}).get(ImageMetaKey.FILENAME_OR_OBJ)
        return image if name is None else MetaTensor(image, meta={ImageMetaKey.FILENAME_OR_OBJ: name})
