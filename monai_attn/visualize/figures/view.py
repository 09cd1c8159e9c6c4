# SPDX-License-Identifier: Apache-2.0
"""Slices of volumes: which one to show, and which way up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from monai.data import MetaTensor
from monai.transforms import Orientation
from monai.utils import convert_to_tensor

__all__ = ["View", "best_slice", "cut", "slice_view", "to_ras"]

_AXES = ("LR", "PA", "IS")  # of the world, from low to high
_OBLIQUE = 0.25  # cosine from which on a second axis of the world is named


class View(NamedTuple):
    """How an array (x, y) becomes a picture.

    Attributes:
        aspect: height of a pixel by its width.
        right: whether the first axis points to the right, not to the left.
        up: whether the second axis points up, not down.
        letters: directions in the patient at the left, right, bottom and top border, if they are known.

    Example:
        >>> View(aspect=2.0).letters is None
        True
    """

    aspect: float = 1.0
    right: bool = True
    up: bool = False
    letters: tuple[str, str, str, str] | None = None


def best_slice(label: torch.Tensor, spatial_dim: int) -> int:
    """Return the index of the slice with the most foreground.

    Args:
        label: label map (1, *spatial).
        spatial_dim: the spatial axis to cut across.

    Example:
        >>> best_slice(torch.tensor([[[0, 0], [1, 2], [0, 1]]]), spatial_dim=0)
        1
    """
    others = [axis for axis in range(label.ndim) if axis != spatial_dim + 1]
    return int((label > 0).sum(dim=others).argmax())


def slice_view(image: torch.Tensor, spatial_dim: int = 2) -> View:
    """Return how to show a 2D image (C, H, W), or a slice of a volume (C, *spatial).

    Of volumes, the second axis left after cutting points up. Where metadata tell the orientation, slices are shown in
    radiological convention: the first axis points to the side of the patient's left, or to the back.

    Args:
        image: the image; a volume's axes should be near those of RAS, in their order. Its metadata tell the size of a
            voxel, else it is 1 mm.
        spatial_dim: of a volume, the spatial axis to cut across.

    Example:
        >>> slice_view(MetaTensor(torch.zeros(1, 4, 5, 6), affine=torch.eye(4)), spatial_dim=1).letters
        ('R', 'L', 'I', 'S')
    """
    sizes = image.pixdim.tolist() if isinstance(image, MetaTensor) else [1.0] * 3
    if image.ndim == 3:
        return View(sizes[1] / sizes[0])
    first, second = (axis for axis in range(3) if axis != spatial_dim)
    aspect = sizes[second] / sizes[first]
    if not isinstance(image, MetaTensor):
        return View(aspect, up=True)
    (low, high), (bottom, top) = (_ends(image, axis) for axis in (first, second))
    right, up = low[0] in "RA", top[0] in "AS"
    horizontal, vertical = (low, high) if right else (high, low), (bottom, top) if up else (top, bottom)
    return View(aspect, right, up, (*horizontal, *vertical))


def to_ras(image: torch.Tensor, layers: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Turn a volume (C, *spatial), and layers on its grid, to RAS orientation, if the volume has metadata.

    Raises:
        ValueError: if a layer has another spatial shape than the image.
    """
    for name, layer in layers.items():
        if layer.shape[1:] != image.shape[1:]:
            raise ValueError(
                f"'{name}' has the spatial shape {tuple(layer.shape[1:])}, the image {tuple(image.shape[1:])}; "
                "put both on one grid first."
            )
    if image.ndim < 4 or not isinstance(image, MetaTensor):
        return image, dict(layers)
    turn = Orientation(axcodes="RAS", labels=None)
    plain = {name: convert_to_tensor(layer, device="cpu") for name, layer in layers.items()}  # without metadata
    return turn(image.cpu()), {name: turn(MetaTensor(layer, affine=image.affine)) for name, layer in plain.items()}


def cut(
    image: torch.Tensor, layers: Mapping[str, torch.Tensor], spatial_dim: int, by: Iterable[str]
) -> tuple[torch.Tensor, dict[str, torch.Tensor], View]:
    """Cut a slice from a volume and its layers, and return it with its view; a 2D image stays whole.

    It is the slice with the most foreground of the first of the layers ``by`` that has any, else the middle one.
    """
    view = slice_view(image, spatial_dim)
    if image.ndim < 4:
        return image, dict(layers), view
    best = (best_slice(layers[name], spatial_dim) for name in by if (layers[name] > 0).any())
    index = next(best, image.shape[spatial_dim + 1] // 2)
    image, *slices = (layer.select(spatial_dim + 1, index) for layer in (image, *layers.values()))
    return image, dict(zip(layers, slices)), view


def _ends(image: MetaTensor, axis: int) -> tuple[str, str]:
    """The directions in the patient that an axis comes from and goes to; two letters each where it is oblique."""
    direction = torch.as_tensor(image.affine)[:3, axis].double()
    direction = direction / direction.norm()
    along = [i for i in direction.abs().argsort(descending=True).tolist() if abs(direction[i]) >= _OBLIQUE]
    high = "".join(_AXES[i][int(direction[i] > 0)] for i in along)
    low = "".join(_AXES[i][int(direction[i] < 0)] for i in along)
    return low, high
