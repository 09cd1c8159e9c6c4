# SPDX-License-Identifier: Apache-2.0
"""Convert scores to a label map on the image's grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd, InvertibleTransform, MapTransform
from monai.utils import MetaKeys, TransformBackends, convert_to_dst_type, convert_to_tensor, ensure_tuple_rep

__all__ = ["AsLabelMapd", "InvertArgmaxd"]


class InvertArgmaxd(MapTransform):
    """``Invertd`` and ``AsDiscreted(argmax=True)`` in one, class by class.

    The label map is that of the two transforms. The scores of one class at a time are brought back to the grid of the
    image, and a running maximum decides, so that beside the network's scores there is room for a few images only, where
    the two transforms hold further copies of the scores of all classes. As with them, the first of equal scores wins,
    and the label map is of type float32.

    Args:
        keys: keys of the scores (C, *spatial) of an arg max over C classes.
        transform: the preprocessing, to be inverted.
        orig_keys: the image that it was applied to, one for each key or for all.
        allow_missing_keys: do not raise if a key is missing.

    Example:
        ``Compose([InvertArgmaxd("pred", preprocessing, orig_keys="image"), AsLabelMapd("pred")])``
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 (MONAI's spelling)

    def __init__(
        self,
        keys: KeysCollection,
        transform: InvertibleTransform,
        orig_keys: KeysCollection = "image",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.inverses = [
            Invertd(key, transform, orig_key, nearest_interp=False)
            for key, orig_key in zip(self.keys, ensure_tuple_rep(orig_keys, len(self.keys)))
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return label maps (1, *spatial) for scores (C, *spatial)."""
        item = dict(data)
        for key, inverse in self.key_iterator(item, self.inverses):
            item[key] = self._label_map(item, key, inverse)
        return item

    def _label_map(self, item: dict[Hashable, Any], key: Hashable, inverse: Invertd) -> torch.Tensor:
        scores = item[key].detach()
        best = labels = placed = torch.empty(0)
        for index in range(len(scores)):
            placed = inverse({**item, key: scores[index : index + 1]})[key]
            values = convert_to_tensor(placed, track_meta=False)
            if index == 0:
                best = values.clone()
                labels = torch.zeros_like(best, dtype=torch.uint8 if len(scores) <= 256 else torch.int32)
            else:  # NaN is above all numbers, as for torch.argmax
                labels.masked_fill_((values <= best).logical_not_().logical_and_(best == best), index)
                torch.maximum(best, values, out=best)
        return convert_to_dst_type(labels, placed, dtype=torch.float32)[0]


class AsLabelMapd(MapTransform):
    """Convert predictions to label maps that MONAI can write.

    A prediction inherits the metadata of its image. If the image's file (or list of files) has channels, MONAI's
    writers believe the same of the prediction once its single channel is gone, take it for one dimension less, and
    cut the affine down to two dimensions: an error, or a wrong grid. So the metadata have to say that it has none.

    Args:
        keys: keys of the label maps (1, *spatial) or (*spatial).
        dtype: type of the values; float32 for a map of probabilities.
        allow_missing_keys: do not raise if a key is missing.

    Example:
        >>> AsLabelMapd("pred")({"pred": torch.tensor([[0.0, 2.0]])})["pred"]
        metatensor([[0, 2]], dtype=torch.uint8)
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(
        self, keys: KeysCollection, dtype: torch.dtype = torch.uint8, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.dtype = dtype

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        """Convert the label maps of a case."""
        item = dict(data)
        for key in self.key_iterator(item):
            label_map = MetaTensor(item[key].to(self.dtype))
            label_map.meta = {**label_map.meta, MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel"}
            item[key] = label_map
        return item
