# SPDX-License-Identifier: Apache-2.0
"""A branch of the autofocus layer that keeps nothing of its own for the backward pass.

Autograd keeps the convolution's and the normalisation's output of every branch, which are most of the memory that
training takes. Here the backward pass convolves again and turns the result, in place and slab by slab, into the
gradient of the convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

__all__ = ["can_recompute", "recomputed_branch"]

_SLABS = 8


def can_recompute(norm: nn.Module) -> bool:
    """Whether a normalisation is one that :func:`recomputed_branch` can differentiate: batch normalisation, or none."""
    return type(norm) in (nn.Identity, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def recomputed_branch(
    x: torch.Tensor,
    weight: torch.Tensor,
    kernel: torch.Tensor,
    norm: nn.Module,
    convolve: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """``weight * norm(convolve(x, kernel))``, computed again in the backward pass.

    Args:
        x: the input (B, C, *spatial).
        weight: a factor for each voxel of the output, (B, 1, *spatial).
        kernel: the kernel.
        norm: batch normalisation, whose running statistics are updated once, or the identity.
        convolve: the convolution, called with ``x`` and ``kernel``.

    Returns:
        the weighted features (B, out_channels, *spatial). There is no second derivative.

    Example:
        >>> x, kernel = torch.rand(1, 2, 9), torch.rand(4, 2, 3, requires_grad=True)
        >>> recomputed_branch(x, torch.ones(1, 1, 7), kernel, torch.nn.BatchNorm1d(4), torch.conv1d).shape
        torch.Size([1, 4, 7])
    """
    gamma, beta = getattr(norm, "weight", None), getattr(norm, "bias", None)
    return _Recomputed.apply(x, weight, kernel, gamma, beta, norm, convolve)


class _Recomputed(torch.autograd.Function):
    """With z the convolution's output and ẑ = (z - mean) / std: weight * (gamma * ẑ + beta)."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, kernel: Any, gamma: Any, beta: Any, norm: Any, convolve: Any) -> Any:
        device = x.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.convolve, ctx.eps = convolve, getattr(norm, "eps", 0.0)
        mean, var = kernel.new_zeros(len(kernel)), kernel.new_ones(len(kernel))
        ctx.batch = not isinstance(norm, nn.Identity) and (norm.training or norm.running_mean is None)
        if not ctx.batch and not isinstance(norm, nn.Identity):
            mean, var = norm.running_mean.clone(), norm.running_var.clone()
        ctx.save_for_backward(x, weight, kernel, gamma, beta, mean, var)
        return weight * norm(convolve(x, kernel))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, kernel, gamma, beta, mean, var = ctx.saved_tensors
        inputs = [tensor.detach().requires_grad_() for tensor in (x, kernel)]
        with torch.enable_grad(), torch.autocast(*ctx.autocast):
            branch = ctx.convolve(*inputs)
        z = branch.detach()
        if ctx.batch:
            mean, var = _statistics(z)
        grads = _differentiate(grad, z, weight, gamma, beta, mean, (var + ctx.eps).rsqrt(), ctx.batch)
        # a convolution's gradient does not need its output, so the gradient of z could take the place of z; and one
        # after the other needs less working memory than both at once
        (grad_kernel,) = torch.autograd.grad(branch, inputs[1], z, retain_graph=True)
        (grad_x,) = torch.autograd.grad(branch, inputs[0], z)
        return grad_x, grads[0], grad_kernel, *grads[1:], None, None


def _differentiate(
    grad: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    gamma: torch.Tensor | None,
    beta: torch.Tensor | None,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    batch: bool,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Put the gradient of ``z`` into ``z``; the gradients of ``weight``, ``gamma`` and ``beta``."""
    shape = [1, -1] + [1] * (z.ndim - 2)
    scale = invstd if gamma is None else gamma * invstd
    shift = -mean * scale if beta is None else beta - mean * scale
    scale, shift, mean, invstd = (value.reshape(shape) for value in (scale, shift, mean, invstd))
    grad_weight = torch.empty_like(weight)
    total, projected = (
        torch.zeros_like(mean),
        torch.zeros_like(mean),
    )  # sums of the gradient g of gamma ẑ + beta, of ẑ g
    for part, features, factor, out in _slabs(grad, z, weight, grad_weight):
        out.copy_((torch.addcmul(shift, features, scale) * part).sum(1, keepdim=True))
        g = part * factor
        total += _channel_sum(g)
        projected += _channel_sum(g.mul_(features - mean)) * invstd
    count = z.numel() / z.shape[1] if batch else math.inf
    for part, features, factor in _slabs(grad, z, weight):
        normalised = (features - mean).mul_(invstd)
        g = (part * factor).sub_(total / count).addcmul_(normalised, projected, value=-1 / count)
        features.copy_(g.mul_(scale))
    return (
        grad_weight,
        None if gamma is None else projected.reshape(-1).to(gamma.dtype),
        None if beta is None else total.reshape(-1).to(beta.dtype),
    )


def _statistics(z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of every channel, without a copy of ``z``."""
    count = z.numel() / z.shape[1]
    mean = _channel_sum(z) / count
    squares = sum((_channel_sum((part - mean).square_()) for (part,) in _slabs(z)), torch.zeros_like(mean))
    return mean.reshape(-1), squares.reshape(-1) / count


def _channel_sum(z: torch.Tensor) -> torch.Tensor:
    return z.sum([0, *range(2, z.ndim)], keepdim=True, dtype=torch.promote_types(z.dtype, torch.float32))


def _slabs(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(tensor.chunk(_SLABS, dim=2) for tensor in tensors))
