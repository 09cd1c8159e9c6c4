# SPDX-License-Identifier: Apache-2.0
"""Which slice of a volume to show, and which way up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from monai.data import MetaTensor

__all__ = ["View", "best_slice", "check_grid", "shown_slice", "slice_view"]

_AXES = ("LR", "PA", "IS")  # of the world, from low to high
_OBLIQUE = 0.25  # cosine from which on a second axis of the world is named


class View(NamedTuple):
    """How an array (x, y) becomes a picture.

    Attributes:
        aspect: height of a pixel by its width.
        right: whether the first axis points to the right, not to the left.
        up: whether the second axis points up, not down.
        letters: directions in the patient at the left, right, bottom and top border; none where nobody knows.

    Example:
        >>> View(aspect=2.0).letters is None
        True
    """

    aspect: float = 1.0
    right: bool = True
    up: bool = False
    letters: tuple[str, str, str, str] | None = None


def best_slice(label: torch.Tensor, spatial_dim: int) -> int:
    """The index along ``spatial_dim`` of the slice of a label map (1, *spatial) with the most foreground.

    Example:
        >>> best_slice(torch.tensor([[[0, 0], [1, 2], [0, 1]]]), spatial_dim=0)
        1
    """
    others = [axis for axis in range(label.ndim) if axis != spatial_dim + 1]
    return int((label > 0).sum(dim=others).argmax())


def shown_slice(masks: Iterable[torch.Tensor], size: int, spatial_dim: int) -> int:
    """The best slice of the first of some label maps that has foreground, else the middle of ``size`` slices."""
    return next((best_slice(mask, spatial_dim) for mask in masks if (mask > 0).any()), size // 2)


def slice_view(image: torch.Tensor, spatial_dim: int = 2, spacing: Sequence[float] | None = None) -> View:
    """How to show a 2D image (C, H, W), or a slice of a volume (C, *spatial).

    Of volumes, the second axis left after cutting points up. Where metadata tell the orientation, slices are shown in
    radiological convention: the first axis points to the side of the patient's left, or to the back.

    Args:
        image: the image; a volume's axes should be near those of RAS, in their order.
        spatial_dim: of a volume, the spatial axis to cut across.
        spacing: size of a voxel along each axis; by default what the metadata tell, or 1.

    Example:
        >>> slice_view(MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.eye(4)), spatial_dim=1).letters
        ('R', 'L', 'I', 'S')
    """
    dims = image.ndim - 1
    known = [float(size) for size in image.pixdim[:dims]] if isinstance(image, MetaTensor) else [1.0] * dims
    sizes = list(spacing or known)
    if dims == 2:
        return View(sizes[1] / sizes[0])
    first, second = (axis for axis in range(3) if axis != spatial_dim)
    aspect = sizes[second] / sizes[first]
    if not isinstance(image, MetaTensor):
        return View(aspect, up=True)
    (low, high), (bottom, top) = (_ends(image, axis) for axis in (first, second))
    right, up = low[0] in "RA", top[0] in "AS"
    horizontal, vertical = (low, high) if right else (high, low), (bottom, top) if up else (top, bottom)
    return View(aspect, right, up, (*horizontal, *vertical))


def check_grid(image: torch.Tensor, layers: Mapping[str, torch.Tensor]) -> None:
    """Raise unless layers (C, *spatial) have the spatial shape of an image.

    Raises:
        ValueError: with the name of the first that has not.
    """
    for name, layer in layers.items():
        if layer.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"'{name}' has the spatial shape {tuple(layer.shape[1:])}, the image {tuple(image.shape[1:])}; "
                "put both on one grid first."
            )


def _ends(image: MetaTensor, axis: int) -> tuple[str, str]:
    """The directions in the patient that an axis comes from and goes to; two letters each where it is oblique."""
    direction = torch.as_tensor(image.affine)[:3, axis].double()
    direction = direction / direction.norm()
    along = [i for i in direction.abs().argsort(descending=True).tolist() if abs(direction[i]) >= _OBLIQUE]
    high = "".join(_AXES[i][int(direction[i] > 0)] for i in along)
    low = "".join(_AXES[i][int(direction[i] < 0)] for i in along)
    return low, high
