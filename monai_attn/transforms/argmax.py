# SPDX-License-Identifier: Apache-2.0
"""From scores on the network's grid to a label map on the image's, without all scores on that grid at once."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Invertd, InvertibleTransform, MapTransform
from monai.utils import TransformBackends, convert_to_dst_type, ensure_tuple_rep

from monai_attn.transforms.slabs import ResampleBySlabs

__all__ = ["InvertArgmaxD", "InvertArgmaxDict", "InvertArgmaxd"]


class InvertArgmaxd(MapTransform):
    """``Invertd`` and ``AsDiscreted(argmax=True)`` in one: the same label map, class by class.

    The scores of one class at a time are brought back to the grid of the image, and a running maximum decides, so that
    beside the network's scores there is room for a few images only, where the two transforms hold further copies of
    the scores of all classes. As with them, the first of equal scores wins, and the label map is of type float32.

    Args:
        keys: keys of the scores (C, *spatial) of an arg max over C classes.
        transform: the preprocessing, to be inverted.
        orig_keys: the image that it was applied to, one for each key or for all.
        allow_missing_keys: whether a missing key is passed over.

    Example:
        ``Compose([InvertArgmaxd("pred", preprocessing, orig_keys="image"), AsLabelMapd("pred")])``
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

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
        """Map scores (C, *spatial on the network's grid) to label maps (1, *spatial on the image's)."""
        item = dict(data)
        for key, inverse in self.key_iterator(item, self.inverses):
            item[key] = self._label_map(item, key, inverse)
        return item

    def _label_map(self, item: dict[Hashable, Any], key: Hashable, inverse: Invertd) -> torch.Tensor:
        scores = item[key].detach()
        best = labels = placed = torch.empty(0)
        for index in range(len(scores)):
            with ResampleBySlabs() if scores.ndim == 4 else nullcontext():
                placed = inverse({**item, key: scores[index : index + 1]})[key]
            if index == 0:
                best = _plain(placed).clone()
                labels = torch.zeros_like(best, dtype=torch.uint8 if len(scores) <= 256 else torch.int32)
            else:
                _update(best, labels, _plain(placed), index)
        return convert_to_dst_type(labels, placed, dtype=torch.float32)[0]


def _update(best: torch.Tensor, labels: torch.Tensor, scores: torch.Tensor, index: int) -> None:
    """Let a further class compete; NaN is above all numbers, as for ``torch.argmax``."""
    wins = (scores <= best).logical_not_().logical_and_(best == best)
    labels.masked_fill_(wins, index)
    torch.maximum(best, scores, out=best)


def _plain(image: torch.Tensor) -> torch.Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image


InvertArgmaxD = InvertArgmaxDict = InvertArgmaxd
