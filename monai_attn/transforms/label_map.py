# SPDX-License-Identifier: Apache-2.0
"""A prediction as a label map that can be written."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import MetaKeys, TransformBackends

__all__ = ["AsLabelMapD", "AsLabelMapDict", "AsLabelMapd"]


class AsLabelMapd(MapTransform):
    """Make predictions label maps, 8-bit as a rule, and their metadata those of a file without channels.

    A prediction inherits the metadata of its image. If the image's file (or list of files) has channels, MONAI's
    writers believe the same of the prediction once its single channel is gone, take it for one dimension less, and
    cut the affine down to two dimensions: an error, or a wrong grid. So the metadata have to say that it has none.

    Args:
        keys: keys of the label maps (1, *spatial) or (*spatial).
        dtype: type of the values; float32 for a map of probabilities.
        allow_missing_keys: whether a missing key is passed over.

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


AsLabelMapD = AsLabelMapDict = AsLabelMapd
