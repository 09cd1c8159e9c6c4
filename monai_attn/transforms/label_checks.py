# SPDX-License-Identifier: Apache-2.0
"""The guard's part for labels: values that are no class indices stop a run before it begins."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_tensor

from monai_attn.errors import DataError
from monai_attn.transforms.grids import check_affine, check_shape, file_of

__all__ = ["CheckLabel", "CheckLabelD", "CheckLabelDict", "CheckLabeld", "label_values"]

_CHUNK = 1 << 16  # voxels that stay in the processor's cache
_MANY_VALUES = 150  # more than label maps have
_LOGGER = logging.getLogger(__name__)


class CheckLabel(Transform):
    """Raise unless a label map holds the class indices that are expected; warn if it is empty.

    Args:
        spatial_dims: number of spatial dimensions.
        values: the values that it may have; any whole numbers that are not negative if ``None``.
        assume_orientation: see :class:`monai_attn.transforms.CheckVolume`.

    Raises:
        DataError: when applied, if the label has other dimensions, more than one channel, other values, a singular
            affine or no orientation.

    Example:
        >>> CheckLabel(2, range(3))(torch.tensor([[[0, 2]]]))
        tensor([[[0, 2]]])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(
        self, spatial_dims: int, values: Iterable[int] | None = None, *, assume_orientation: str | None = None
    ) -> None:
        self.spatial_dims = spatial_dims
        self.values = None if values is None else sorted(values)
        self.assume_orientation = assume_orientation

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Check a label map (1, *spatial)."""
        name = file_of(img, "the label")
        if img.shape[0] > 1:
            problem = f"it has {img.shape[0]} channels or volumes (one-hot?), expected one label map"
            raise DataError(name, problem, "save the class of every voxel, the argmax over the channels")
        check_shape(img, name, self.spatial_dims, 1)
        found = label_values(img)
        wrong = [value for value in found if not self._may_be(value)]
        if wrong:
            raise DataError(name, *self._explain(wrong, len(found)))
        if found == [0]:
            _LOGGER.warning("%s: the label is empty", name)
        return check_affine(img, name, self.assume_orientation)

    def _may_be(self, value: float) -> bool:
        return value in self.values if self.values is not None else value >= 0 and float(value).is_integer()

    def _explain(self, wrong: list[float], number: int) -> tuple[str, str]:
        """The problem and the fix of the values in ``wrong``, of ``number`` different ones."""
        allowed = "whole numbers" if self.values is None else ", ".join(map(str, self.values))
        problem = f"it has the values {', '.join(f'{value:g}' for value in wrong[:5])}"
        problem += f"{' …' if len(wrong) > 5 else ''}, expected {allowed}"
        if not np.isfinite(wrong).all():
            return problem, "repair the label"
        if number > _MANY_VALUES:
            return f"{problem}; it looks like an image", "give the label, and see that image and label are not swapped"
        if not all(float(value).is_integer() for value in wrong):
            return problem, "save the label as integers; if you resample it, by nearest neighbour"
        example = f"{{{wrong[-1]:g}: {max(self.values) if self.values else 1}}}"
        return (
            problem,
            f"map the values in the file, such as {example}, by MONAI's MapLabelValue, or name all structures",
        )


class CheckLabeld(MapTransform):
    """:class:`CheckLabel` for the labels of a dictionary.

    Args:
        keys: keys of the labels (1, *spatial).
        spatial_dims: number of spatial dimensions.
        values: the values that they may have; any whole numbers that are not negative if ``None``.
        assume_orientation: see :class:`monai_attn.transforms.CheckVolume`.
        allow_missing_keys: whether a missing key is passed over.

    Example:
        >>> CheckLabeld("label", 2, range(3))({"label": torch.tensor([[[0, 2]]])})["label"].max()
        tensor(2)
    """

    backend = CheckLabel.backend

    def __init__(
        self,
        keys: KeysCollection,
        spatial_dims: int,
        values: Iterable[int] | None = None,
        *,
        assume_orientation: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.check = CheckLabel(spatial_dims, values, assume_orientation=assume_orientation)

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Check the labels of a case."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.check(item[key])
        return item


def label_values(label: NdarrayOrTensor) -> list[float]:
    """The distinct values of a label map, ascending; NaN once for every voxel.

    Example:
        >>> label_values(torch.tensor([[2.0, 0.0, 2.0]]))
        [0, 2]
    """
    voxels = convert_to_tensor(label, track_meta=False).flatten()
    counts = torch.zeros(256, dtype=torch.int64)
    for part in voxels.split(_CHUNK):  # ten times as fast as sorting, where all values are bytes
        as_bytes = part.to(torch.uint8)
        if not torch.equal(as_bytes.to(part.dtype), part):
            return voxels.unique().tolist()
        counts += torch.bincount(as_bytes, minlength=256)
    return counts.nonzero().flatten().tolist()


CheckLabelD = CheckLabelDict = CheckLabeld
