# SPDX-License-Identifier: Apache-2.0
"""Edge maps of labels by a Sobel filter, EG-CNN's target.

Hatamizadeh, Terzopoulos, Myronenko: "Edge-Gated CNNs for Volumetric Semantic Segmentation of Medical Images", 2020,
https://arxiv.org/abs/2002.04207, Sec. 2.1: a Sobel filter turns the masks of the ground truth into edges, in eq. 7 the
predicted ones too.

There is no authors' code, and the paper gives no filter in 3D, handling of borders, threshold, or rule for several
classes. The filter is separable, and border voxels are repeated, because zeros would draw an edge wherever a
crop cuts through a structure; any magnitude is an edge, and the edges of all classes, each filtered as a mask, are
united.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

__all__ = ["EDGE_TOLERANCE", "SobelEdges", "SobelEdgesd", "edge_targets", "foreground_masks", "sobel_edges"]

EDGE_TOLERANCE = 1e-4
"""Smaller magnitudes are rounding: the smallest one of a mask is 1/32."""

_EPSILON = 1e-6  # magnitudes below it come out smaller still, and count as this one in the root's derivative at 0


def foreground_masks(label: torch.Tensor, num_classes: int, *, include_background: bool = False) -> torch.Tensor:
    """Return a bool mask for each class of labels.

    The label (B, 1, *spatial) gives masks (B, num_classes - 1, *spatial), or num_classes ones with the background.

    Example:
        >>> foreground_masks(torch.tensor([[[0, 2, 1]]]), 3).int()
        tensor([[[0, 0, 1], [0, 1, 0]]], dtype=torch.int32)
    """
    classes = torch.arange(0 if include_background else 1, num_classes, device=label.device)
    return label == classes.reshape(-1, *[1] * (label.ndim - 2))


def edge_targets(
    masks: torch.Tensor, *, per_class: bool = False, threshold: float = 0.0, soft: bool = False
) -> torch.Tensor:
    """Return edges of masks, float32 (B, 1 or C, *spatial).

    Args:
        masks: masks (B, C, *spatial), bool or numbers from 0 to 1, with 1 to 3 spatial axes.
        per_class: whether every mask has edges of its own; otherwise they are united.
        threshold: magnitudes above it are edges: at 0 the two voxels on either side of a face, at 0.25 a band about 1.8
            voxels wide. A structure one voxel thin has its edge around it.
        soft: whether to return the (largest) magnitude instead of 0 and 1.

    Example:
        >>> edge_targets(torch.tensor([[[False, False, False, True, True]]]))
        tensor([[[0., 0., 1., 1., 0.]]])
    """
    edges = sobel_edges(masks)
    if not per_class:
        edges = edges.amax(dim=1, keepdim=True)
    return edges if soft else (edges > max(threshold, EDGE_TOLERANCE)).float()


class SobelEdges(Transform):
    """Compute edge maps of labels with a Sobel filter.

    :class:`monai_attn.losses.EGCNNLoss` computes the same map by itself. The result is float32; MONAI's
    ``SobelGradients`` casts to the type of the label, which gives zeros for uint8.

    Args:
        num_classes: number of classes, with the background, of class indices (1, *spatial); ``None`` for foreground
            masks (C, *spatial).
        per_class, threshold, soft: see :func:`edge_targets`.

    Raises:
        ValueError: if ``num_classes`` is below 2.

    Example:
        >>> label = torch.tensor([[0, 0, 0, 2, 2, 1, 1]], dtype=torch.uint8)
        >>> SobelEdges(num_classes=3)(label)
        metatensor([[0., 0., 1., 1., 1., 1., 0.]])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012 (MONAI's spelling)

    def __init__(
        self, *, num_classes: int | None = None, per_class: bool = False, threshold: float = 0.0, soft: bool = False
    ) -> None:
        if num_classes is not None and num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, the background and one structure, got {num_classes}.")
        self.num_classes = num_classes
        self.per_class = per_class
        self.threshold = threshold
        self.soft = soft

    def __call__(self, label: NdarrayOrTensor) -> torch.Tensor:
        """Return the edges of a label (1 or C, *spatial).

        Raises:
            ValueError: if the label has several channels of class indices, or other values.
        """
        source = convert_to_tensor(label, track_meta=get_track_meta())
        masks = self._masks(convert_to_tensor(label, track_meta=False))
        edges = edge_targets(masks[None], per_class=self.per_class, threshold=self.threshold, soft=self.soft)
        return convert_to_dst_type(edges[0], source, dtype=torch.float32)[0]

    def _masks(self, label: torch.Tensor) -> torch.Tensor:
        highest = (self.num_classes or 2) - 1
        if self.num_classes is not None and label.shape[0] != 1:
            raise ValueError(f"a label of class indices must have one channel, got shape {tuple(label.shape)}.")
        if label.min() < 0 or label.max() > highest:
            raise ValueError(f"the label has values from {label.min()} to {label.max()}, expected 0 to {highest}.")
        return label > 0.5 if self.num_classes is None else foreground_masks(label[None], self.num_classes)[0]


class SobelEdgesd(MapTransform):
    """Dictionary form of :class:`SobelEdges`, with the same ``options``.

    ``new_key_prefix`` is a prefix for the keys of the edges; by default they replace the labels.

    Example:
        >>> data = {"label": torch.zeros(1, 8, 8)}
        >>> sorted(SobelEdgesd("label", num_classes=3, new_key_prefix="edges_of_")(data))
        ['edges_of_label', 'label']
    """

    backend = SobelEdges.backend

    def __init__(
        self, keys: KeysCollection, *, new_key_prefix: str = "", allow_missing_keys: bool = False, **options: Any
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.edges = SobelEdges(**options)
        self.new_key_prefix = new_key_prefix

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Compute the edges of labels (1 or C, *spatial)."""
        output = dict(data)
        for key in self.key_iterator(output):
            output[f"{self.new_key_prefix}{key}"] = self.edges(output[key])
        return output


def sobel_edges(x: torch.Tensor, *, normalize: bool = True) -> torch.Tensor:
    r"""Compute the magnitude of the Sobel gradient, :math:`\sqrt{\sum_a (D_a x)^2}`.

    :math:`D_a` is the difference [-1, 0, 1] / 2 along the axis :math:`a` and the smoothing [1, 2, 1] / 4 along the
    others. The gradient with respect to ``x`` is finite everywhere, and 0 where ``x`` is flat.

    Args:
        x: images or masks (B, C, *spatial) with 1 to 3 spatial axes, as is the result; bool masks are filtered in
            integers, types below float32 in float32.
        normalize: whether a ramp that rises by 1 per voxel has magnitude 1. Otherwise the filter consists of integers,
            and the magnitude is 2 (1D), 8 (2D) or 32 (3D) times as large.

    Raises:
        ValueError: if ``x`` has no or more than 3 spatial axes.

    Example:
        >>> sobel_edges(torch.tensor([[[False, False, True, True]]]))
        tensor([[[0.0000, 0.5000, 0.5000, 0.0000]]])
    """
    if x.ndim not in (3, 4, 5):
        raise ValueError(f"x must have shape (B, C, *spatial) with 1 to 3 spatial axes, got {tuple(x.shape)}.")
    is_mask = x.dtype == torch.bool
    maps = _Gradients.apply(x.to(torch.int8 if is_mask else torch.promote_types(x.dtype, torch.float32)))
    if is_mask:
        maps = [gradient.short() for gradient in maps]  # ±16 fit an int8, their squares do not
    return _Magnitude.apply(2 * 4 ** (x.ndim - 3) if normalize else 1, *maps)


class _Gradients(torch.autograd.Function):
    """The difference along each axis, smoothed along the others."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps: list[torch.Tensor] = []  # they share what they have in common: 8 filters in 3D in place of 9
        for axis in range(x.ndim - 1, 1, -1):
            maps = [*(_filter(gradient, axis, 1) for gradient in maps), _filter(x, axis, -1)]
            x = _filter(x, axis, 1) if axis > 2 else x
        return tuple(maps)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
        return _Transposed.apply(*grads)


class _Transposed(torch.autograd.Function):
    """The transpose of :class:`_Gradients` as a matrix."""

    @staticmethod
    def forward(ctx: Any, *maps: torch.Tensor) -> torch.Tensor:
        *others, gradient = maps
        x = _filter(gradient, 2, -1, transposed=True)
        for axis in range(3, x.ndim):
            *others, gradient = (_filter(other, axis - 1, 1) for other in others)
            x = _filter(gradient, axis, -1, transposed=True).add_(_filter(x, axis, 1))
        return x

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return _Gradients.apply(grad)


def _filter(x: torch.Tensor, axis: int, sign: int, transposed: bool = False) -> torch.Tensor:
    """Filter with [1, 2, 1] or [-1, 0, 1].

    ``sign`` is 1 or -1, and ``transposed`` gives the transpose of the latter. In memory, neighbors along an axis are
    equally far apart everywhere, so adding whole maps is faster than adding slices. Then the ends, where that neighbor
    belongs to another row, are replaced: voxels are repeated beyond them.
    """
    if x.shape[axis] == 1:
        return x * (2 + 2 * sign)
    x = x.contiguous()
    result, voxels, step = torch.empty_like(x), x.view(-1), x.stride(axis)
    before, after = voxels[: -2 * step], voxels[2 * step :]
    first, second = (before, after) if transposed else (after, before)
    torch.add(first, second, alpha=sign, out=result.view(-1)[step:-step])
    at_end = -sign if transposed else sign
    torch.add(x.select(axis, 1), x.select(axis, 0), alpha=at_end, out=result.select(axis, 0))
    torch.add(x.select(axis, -1), x.select(axis, -2), alpha=at_end, out=result.select(axis, -1))
    if transposed:
        result.select(axis, 0).neg_()
    return result.add_(x, alpha=2) if sign > 0 else result


class _Magnitude(torch.autograd.Function):
    """Root of the sum of squares, divided by a number."""

    @staticmethod
    def forward(ctx: Any, scale: int, *maps: torch.Tensor) -> torch.Tensor:
        square = maps[0] * maps[0]
        for gradient in maps[1:]:
            square.addcmul_(gradient, gradient)
        square = square.to(torch.promote_types(square.dtype, torch.float32))
        # with zeros, as in most of a mask, a CPU takes several times as long for the root itself
        inverse = torch.add(torch.tensor((_EPSILON * scale**2) ** 2), square, alpha=scale**2).rsqrt_()
        magnitude = square.mul_(inverse)
        ctx.scale = scale
        ctx.save_for_backward(magnitude, *maps)
        return magnitude

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        magnitude, *maps = ctx.saved_tensors
        weight = grad / magnitude.clamp(min=_EPSILON).mul_(ctx.scale**2)
        return None, *[weight * gradient for gradient in maps]
