# SPDX-License-Identifier: Apache-2.0
"""Check labels against their images."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform
from monai.utils import TransformBackends, convert_to_tensor

from monai_attn.errors import DataError
from monai_attn.transforms.checks.grid import check_affine, check_pair, check_shape, files_of

__all__ = ["CheckLabeld", "label_values"]

_MANY_VALUES = 150  # more than label maps have
_LOGGER = logging.getLogger(__name__)


class CheckLabeld(MapTransform):
    """Raise unless labels are class indices that match their image.

    Empty labels are warned about.

    Args:
        keys: keys of the label maps (1, *spatial).
        image_key: key of the image (C, *spatial), checked before.
        values: the values that a label may have; any whole numbers that are not negative if ``None``.
        assume_orientation: axes, such as ``"RAS"``, of NIfTI files that do not give their orientation.
        allow_missing_keys: do not raise if a key is missing.

    Raises:
        DataError: when applied, if a label has more than one channel, other values, a singular affine, no orientation
            or another shape than its image, or, of volumes with metadata, if spacing, direction or origin put any voxel
            more than half a voxel away.

    Example:
        >>> case = {"image": torch.rand(1, 1, 2), "label": torch.tensor([[[0, 2]]])}
        >>> CheckLabeld("label", values=range(3))(case)["label"]
        tensor([[[0, 2]]])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012

    def __init__(
        self,
        keys: KeysCollection,
        image_key: str = "image",
        values: Iterable[int] | None = None,
        *,
        assume_orientation: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.values = None if values is None else sorted(values)
        self.assume_orientation = assume_orientation

    def __call__(self, data: Mapping[Hashable, NdarrayOrTensor]) -> dict[Hashable, NdarrayOrTensor]:
        """Check the labels of a case."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self._check(item[key], item[self.image_key])
        return item

    def _check(self, label: NdarrayOrTensor, image: NdarrayOrTensor) -> NdarrayOrTensor:
        name = files_of(label, "the label")[0]
        if label.shape[0] > 1:
            problem = f"it has {label.shape[0]} channels or volumes (one-hot?), expected one label map"
            raise DataError(name, problem, "save the class of every voxel, the argmax over the channels")
        check_shape(label, name, image.ndim - 1, 1)
        found = label_values(label)
        wrong = [value for value in found if not self._may_be(value)]
        if wrong:
            raise DataError(name, *self._explain(wrong, len(found)))
        if found == [0]:
            _LOGGER.warning("%s: the label is empty", name)
        label = check_affine(label, name, self.assume_orientation)
        check_pair(image, label, files_of(image, "the image")[0], name)
        return label

    def _may_be(self, value: float) -> bool:
        return value in self.values if self.values is not None else value >= 0 and float(value).is_integer()

    def _explain(self, wrong: list[float], number: int) -> tuple[str, str]:
        """Return the problem and the fix; ``number`` counts all distinct values."""
        allowed = "whole numbers" if self.values is None else ", ".join(map(str, self.values))
        problem = f"it has the values {', '.join(f'{value:g}' for value in wrong[:5])}"
        problem += f"{' …' if len(wrong) > 5 else ''}, expected {allowed}"
        if not np.isfinite(wrong).all():
            return problem, "repair the label"
        if number > _MANY_VALUES:
            return f"{problem}; it looks like an image", "give the label, and see that image and label are not swapped"
        if not all(float(value).is_integer() for value in wrong):
            return problem, "save the label as integers; if you resample it, by nearest neighbour"
        pair = f"{{{wrong[-1]:g}: {max(self.values) if self.values else 1}}}"
        return problem, f"map the values in the file, such as {pair}, by MONAI's MapLabelValue, or name all structures"


def label_values(label: NdarrayOrTensor) -> list[float]:
    """Return the distinct values of a label map, ascending.

    NaN is returned once for every voxel that has it.

    Example:
        >>> label_values(torch.tensor([[2.0, 0.0, 2.0]]))
        [0, 2]
    """
    voxels = convert_to_tensor(label, track_meta=False).flatten()
    as_bytes = voxels.to(torch.uint8)
    if not torch.equal(as_bytes.to(voxels.dtype), voxels):
        return voxels.unique().tolist()
    return torch.bincount(as_bytes).nonzero().flatten().tolist()  # ten times as fast as sorting
