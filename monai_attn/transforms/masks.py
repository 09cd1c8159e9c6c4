# SPDX-License-Identifier: Apache-2.0
"""Where the head is in an image whose skull was stripped."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor, ensure_tuple_rep

__all__ = ["BrainMaskD", "BrainMaskDict", "BrainMaskd"]


class BrainMaskd(MapTransform):
    """Add the mask of the brain in a skull-stripped image: where any channel differs from what is outside.

    Outside is the value of each channel at the image's first voxel: 0 in images as they are published, another one
    where somebody has normalised them.

    Args:
        keys: keys of the images.
        mask_keys: where to put the masks, one for each key.
        allow_missing_keys: whether a missing key is passed over.

    Example:
        >>> image = torch.full((2, 3, 3), -2.5)
        >>> image[1, 1, 2] = 0.7
        >>> BrainMaskd("image", "mask")({"image": image})["mask"].nonzero().tolist()
        [[0, 1, 2]]
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, keys: KeysCollection, mask_keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.mask_keys = ensure_tuple_rep(mask_keys, len(self.keys))

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Add the masks (1, *spatial) of a case."""
        item = dict(data)
        for key, mask_key in self.key_iterator(item, self.mask_keys):
            image = convert_to_tensor(item[key], track_meta=False)
            outside = image.flatten(1)[:, :1].reshape([-1] + [1] * (image.ndim - 1))
            mask = (image != outside).any(dim=0, keepdim=True)
            item[mask_key] = convert_to_dst_type(mask, item[key], dtype=torch.uint8)[0]
        return item


BrainMaskD = BrainMaskDict = BrainMaskd
