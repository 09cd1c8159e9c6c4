# SPDX-License-Identifier: Apache-2.0
"""Convert scores to label maps, and labels to regions."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Invertd, InvertibleTransform, MapTransform, Transform
from monai.utils import MetaKeys, TransformBackends, convert_to_dst_type, convert_to_tensor, ensure_tuple_rep

from monai_attn.errors import ConfigError

__all__ = [
    "AsLabelMapd", "BrainMaskd", "EachImaged", "InvertArgmaxd", "LabelsToRegions", "LabelsToRegionsd",
    "RegionsToLabels", "RegionsToLabelsd",
]  # fmt: skip


class EachImaged(MapTransform):
    """Convert the image of each key; subclasses have ``convert``.

    What it returns replaces the image, or is stored as one of the ``output_keys`` of the subclass, if it has any.
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 (MONAI's spelling)
    convert: Callable[[Any], Any]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Convert the images of a case."""
        item = dict(data)
        for key, output in self.key_iterator(item, getattr(self, "output_keys", self.keys)):
            item[output] = self.convert(item[key])
        return item


class InvertArgmaxd(MapTransform):
    """Invert scores and take their argmax, class by class.

    It equals ``Invertd`` and ``AsDiscreted(argmax=True)``, but memory only holds the scores and a few images.

    Args:
        keys, allow_missing_keys: see MONAI's ``MapTransform``; scores (C, *spatial) of C classes, without NaN.
        transform: the preprocessing, to be inverted.
        orig_keys: the image that it was applied to, one for each key or for all.

    Example:
        ``Compose([InvertArgmaxd("pred", preprocessing), AsLabelMapd("pred")])``
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
        """Return label maps (1, *spatial), float32, for scores (C, *spatial)."""
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
            else:
                labels.masked_fill_(values > best, index)
                torch.maximum(best, values, out=best)
        return convert_to_dst_type(labels, placed, dtype=torch.float32)[0]


class AsLabelMapd(EachImaged):
    """Convert predictions to label maps that MONAI can save.

    The metadata, inherited from the image, then say ``no_channel``. Otherwise MONAI's writers would cut the affine of
    an image with channels down to two dimensions. Label maps are (1, *spatial) or (*spatial); for probabilities take
    ``dtype=torch.float32``, for more than 256 classes ``torch.int16``.

    Raises:
        ConfigError: when called, if a label is too large for the type.

    Example:
        >>> AsLabelMapd("pred")({"pred": torch.tensor([[0.0, 2.0]])})["pred"]
        metatensor([[0, 2]], dtype=torch.uint8)
    """

    def __init__(
        self, keys: KeysCollection, dtype: torch.dtype = torch.uint8, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.dtype = dtype

    def convert(self, image: torch.Tensor) -> MetaTensor:
        """Return a label map of the type, without a channel in its metadata."""
        if not self.dtype.is_floating_point and (highest := image.max()) > torch.iinfo(self.dtype).max:
            problem = f"label {highest:g} does not fit {self.dtype}"
            raise ConfigError("AsLabelMapd", problem, "pass dtype=torch.int16")
        label_map = MetaTensor(image.to(self.dtype))
        label_map.meta = {**label_map.meta, MetaKeys.ORIGINAL_CHANNEL_DIM: "no_channel"}
        return label_map


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


class LabelsToRegionsd(EachImaged):
    """Dictionary form of :class:`LabelsToRegions`.

    The regions are stored as ``output_keys``, one for each key, or else replace the label maps.

    Example:
        ``LabelsToRegionsd(["pred", "label"], [[1, 2], [2]], output_keys=["pred_regions", "label_regions"])``
    """

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
        self.values = tuple(values)

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Convert regions (R, *spatial) to labels (1, *spatial)."""
        regions = convert_to_tensor(img, track_meta=False)
        if len(regions) != len(self.values):
            raise ValueError(f"{len(self.values)} regions are needed, got {len(regions)} channels.")
        labels = torch.zeros_like(regions[:1], dtype=torch.uint8)
        for region, value in zip(regions, self.values):
            labels[0][region > 0] = value
        return convert_to_dst_type(labels, img, dtype=torch.uint8)[0]


class RegionsToLabelsd(EachImaged):
    """Dictionary form of :class:`RegionsToLabels`.

    Example:
        ``RegionsToLabelsd("pred", [2, 1, 4])`` after a threshold.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.convert = RegionsToLabels(values)


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
