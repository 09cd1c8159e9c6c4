# SPDX-License-Identifier: Apache-2.0
"""Sobel filter in 1D to 3D, fast enough to be part of a loss.

Hatamizadeh, Terzopoulos, Myronenko: "Edge-Gated CNNs for Volumetric Semantic Segmentation of Medical Images", 2020,
https://arxiv.org/abs/2002.04207: it makes the ground truth of the edges, and eq. 7 applies it to the prediction too.

There is no authors' code, and the paper tells neither the filter in 3D nor its border. Here it is the separable one,
and the voxels at the border are repeated: zeros would draw an edge wherever a crop cuts through a structure.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["sobel_edges"]

_EPSILON = 1e-6  # a magnitude below it counts as this one in the derivative of the root, which is infinite at 0


def sobel_edges(x: torch.Tensor, *, normalize: bool = True) -> torch.Tensor:
    r"""Magnitude of the Sobel gradient, :math:`\sqrt{\sum_a (D_a x)^2}`.

    :math:`D_a` is the difference [-1, 0, 1] / 2 along the axis :math:`a` and the smoothing [1, 2, 1] / 4 along the
    others. The gradient with respect to ``x`` is finite everywhere, and 0 where ``x`` is flat.

    Args:
        x: images or masks (B, C, *spatial) with 1 to 3 spatial axes; bool masks are filtered in integers, types below
            float32 in float32.
        normalize: whether a ramp that rises by 1 per voxel has magnitude 1. Otherwise the filter consists of integers,
            and the magnitude is 2 (1D), 8 (2D) or 32 (3D) times as large.

    Returns:
        the magnitude (B, C, *spatial).

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
    smooth = x.to(torch.int8 if is_mask else torch.promote_types(x.dtype, torch.float32))
    gradients: list[torch.Tensor] = []  # they share what they have in common: 8 filters in 3D in place of 9
    for axis in range(2, x.ndim):
        gradients = [_Filter.apply(gradient, axis, 1) for gradient in gradients]
        gradients.append(_Filter.apply(smooth, axis, -1))
        smooth = _Filter.apply(smooth, axis, 1) if axis < x.ndim - 1 else smooth
    if is_mask:
        gradients = [gradient.short() for gradient in gradients]  # ±16 fit an int8, their squares do not
    return _Magnitude.apply(2 * 4 ** (x.ndim - 3) if normalize else 1, *gradients)


class _Filter(torch.autograd.Function):
    """The filter [1, 2, 1] (``sign`` 1) or [-1, 0, 1] (``sign`` -1) along an axis.

    Both add up two neighbouring pairs, x[i] + sign·x[i-1] and x[i+1] + sign·x[i]. Beyond the ends, the voxels are
    repeated ``end`` times (1 or -1). As matrices, the first filter is symmetric, and the transposed second one is the
    negative of that with the other ``end``; hence the derivative. Autograd by itself would write a map of zeros for
    every slice.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: int, sign: int, end: int = 1) -> torch.Tensor:
        ctx.axis, ctx.sign, ctx.end = axis, sign, end
        size = x.shape[axis]
        pairs = x.new_empty([length + (index == axis) for index, length in enumerate(x.shape)])
        inner = pairs.narrow(axis, 1, size - 1)
        torch.add(x.narrow(axis, 1, size - 1), x.narrow(axis, 0, size - 1), alpha=sign, out=inner)
        pairs.select(axis, 0).copy_(x.select(axis, 0)).mul_(1 + sign * end)
        pairs.select(axis, -1).copy_(x.select(axis, -1)).mul_(end + sign)
        return pairs.narrow(axis, 1, size) + pairs.narrow(axis, 0, size)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        transposed = _Filter.apply(grad, ctx.axis, ctx.sign, ctx.sign * ctx.end)
        return -transposed if ctx.sign < 0 else transposed, None, None, None


class _Magnitude(torch.autograd.Function):
    """Root of the sum of squares of maps, divided by a number."""

    @staticmethod
    def forward(ctx: Any, scale: int, *maps: torch.Tensor) -> torch.Tensor:
        square = maps[0] * maps[0]
        for gradient in maps[1:]:
            square.addcmul_(gradient, gradient)
        magnitude = (square / scale**2).sqrt_()
        ctx.scale = scale
        ctx.save_for_backward(magnitude, *maps)
        return magnitude

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        magnitude, *maps = ctx.saved_tensors
        weight = grad / (magnitude.clamp(min=_EPSILON) * ctx.scale**2)
        return None, *[weight * gradient for gradient in maps]
