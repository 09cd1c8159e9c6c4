# SPDX-License-Identifier: Apache-2.0
"""Sobel filter for 1D to 3D, fast enough for losses.

Hatamizadeh, Terzopoulos, Myronenko: "Edge-Gated CNNs for Volumetric Semantic Segmentation of Medical Images", 2020,
https://arxiv.org/abs/2002.04207, Sec. 2.1: the filter of the true edges, in eq. 7 of the predicted ones too.

There is no authors' code, and the paper gives neither the filter in 3D nor its border. Here the filter is separable,
and border voxels are repeated, because zeros would draw an edge wherever a crop cuts through a structure.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["sobel_edges"]

_EPSILON = 1e-6  # magnitudes below it come out smaller still, and count as this one in the root's derivative at 0


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
        raise ValueError(
            f"x must have shape (B, C, *spatial) with 1 to 3 spatial axes, got {tuple(x.shape)}; add a missing batch "
            "or channel axis by x[None]."
        )
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
