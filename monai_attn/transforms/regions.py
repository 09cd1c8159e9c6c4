# SPDX-License-Identifier: Apache-2.0
"""Convert labels to overlapping regions, such as BraTS's, and back."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor, ensure_tuple, ensure_tuple_rep

__all__ = ["BrainMaskd", "LabelsToRegions", "LabelsToRegionsd", "RegionsToLabels", "RegionsToLabelsd"]


class LabelsToRegions(Transform):
    """Convert a label map to a binary channel per region.

    ``regions`` are the label values of each; MONAI's ``ConvertToMultiChannelBasedOnBratsClasses`` has them fixed.

    Raises:
        ValueError: when called, if the label map has more than one channel.

    Example:
        >>> whole, core, enhancing = LabelsToRegions([[1, 2, 3, 4], [1, 3, 4], [4]])(torch.tensor([[0, 1, 2, 3, 4]]))
        >>> core
        tensor([0, 1, 0, 1, 1], dtype=torch.uint8)
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, regions: Sequence[Sequence[int]]) -> None:
        self.regions = [list(region) for region in regions]

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Convert labels (1, *spatial) to regions (R, *spatial)."""
        labels = convert_to_tensor(img, track_meta=False)
        if labels.shape[0] != 1:
            raise ValueError(f"a label map of shape (1, *spatial) is needed, got {tuple(labels.shape)}.")
        values = [torch.tensor(region, dtype=labels.dtype, device=labels.device) for region in self.regions]
        regions = torch.cat([torch.isin(labels, value) for value in values])
        return convert_to_dst_type(regions, img, dtype=torch.uint8)[0]


class LabelsToRegionsd(MapTransform):
    """Dictionary form of :class:`LabelsToRegions`.

    The regions are stored as ``output_keys``, one for each key, or else replace the label maps.

    Example:
        ``LabelsToRegionsd(["pred", "label"], [[1, 2], [2]], output_keys=["pred_regions", "label_regions"])``
    """

    backend = LabelsToRegions.backend

    def __init__(
        self,
        keys: KeysCollection,
        regions: Sequence[Sequence[int]],
        output_keys: KeysCollection | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.output_keys = ensure_tuple_rep(output_keys, len(self.keys)) if output_keys else self.keys
        self.convert = LabelsToRegions(regions)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Convert the label maps of a case."""
        item = dict(data)
        for key, output in self.key_iterator(item, self.output_keys):
            item[output] = self.convert(item[key])
        return item


class RegionsToLabels(Transform):
    """Convert binary channels of regions to a label map.

    ``values`` are their labels, the outermost region first; later regions overwrite earlier ones.

    Raises:
        ValueError: when called, if the number of channels is not that of the values.

    Example:
        >>> RegionsToLabels([2, 1, 4])(torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]]))
        tensor([[0, 2, 1, 4]], dtype=torch.uint8)
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(self, values: Sequence[int]) -> None:
        self.values = ensure_tuple(values)

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Convert regions (R, *spatial) to labels (1, *spatial)."""
        regions = convert_to_tensor(img, track_meta=False)
        if len(regions) != len(self.values):
            raise ValueError(f"{len(self.values)} regions are needed, got {len(regions)} channels.")
        labels = torch.zeros_like(regions[:1], dtype=torch.uint8)
        for region, value in zip(regions, self.values):
            labels[0][region > 0] = value
        return convert_to_dst_type(labels, img, dtype=torch.uint8)[0]


class RegionsToLabelsd(MapTransform):
    """Dictionary form of :class:`RegionsToLabels`.

    Example:
        ``RegionsToLabelsd("pred", [2, 1, 4])`` after a threshold.
    """

    backend = RegionsToLabels.backend

    def __init__(self, keys: KeysCollection, values: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.convert = RegionsToLabels(values)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Convert the regions of a case."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.convert(item[key])
        return item


class BrainMaskd(MapTransform):
    """Add the brain mask of skull-stripped images.

    It is where any channel differs from the image's first voxel: 0 in published images, other values in normalized
    ones. There is one of the ``mask_keys`` for each image.

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
