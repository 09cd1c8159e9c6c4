# SPDX-License-Identifier: Apache-2.0
"""Memory-efficient branches of the autofocus layer.

Autograd keeps the outputs of the convolution and normalization of every branch, most of the memory of training. Here
the backward pass convolves again, and computes the other gradients in place, for a third of the rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["can_recompute", "fast_layout", "recomputed_sum"]

_SLABS = 3  # with more, thus smaller ones, PyTorch leaves its fast convolutions sooner


def can_recompute(norm: nn.Module) -> bool:
    """Return whether :func:`recomputed_sum` supports a normalization (batch or none)."""
    return type(norm) in (nn.Identity, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def recomputed_sum(
    x: torch.Tensor,
    scales: torch.Tensor,
    kernels: Sequence[torch.Tensor],
    norms: Iterable[nn.Module],
    dilations: Sequence[int],
    crop: int,
    convolve: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Return a sum over branches, recomputed in the backward pass.

    The sum over k of ``scales[:, k] * norms[k](convolve(x, kernels[k]))``, (B, out_channels, *cropped). There is no
    second derivative.

    Args:
        x: the input (B, C, *spatial).
        scales: a factor for each branch and voxel of the output, (B, K, *cropped).
        kernels: the kernel of each branch, (out_channels, C, 3, ...).
        norms: batch normalization, whose running statistics are updated once, or the identity.
        dilations: the dilation of each branch; it is padded by ``crop`` less.
        crop: voxels that the output loses at every side.
        convolve: :func:`torch.conv1d`, :func:`torch.conv2d` or :func:`torch.conv3d`.

    Example:
        >>> x, kernel = torch.rand(1, 2, 9), torch.rand(4, 2, 3, requires_grad=True)
        >>> norms = [torch.nn.BatchNorm1d(4), torch.nn.BatchNorm1d(4)]
        >>> recomputed_sum(x, torch.ones(1, 2, 9), [kernel, kernel], norms, (1, 2), 0, torch.conv1d).shape
        torch.Size([1, 4, 9])
    """
    shape = [1, -1] + [1] * (x.ndim - 2)
    parameters, branches = [], []
    for kernel, norm, dilation in zip(kernels, norms, dilations):
        gamma, beta = getattr(norm, "weight", None), getattr(norm, "bias", None)
        parameters.append(kernel)
        parameters.append((kernel.new_ones(len(kernel)) if gamma is None else gamma).reshape(shape))
        parameters.append((kernel.new_zeros(len(kernel)) if beta is None else beta).reshape(shape))
        branches.append((norm, dilation, dilation - crop))
    # a MetaTensor would make the output a view, which nothing may change in place, as activations do
    x, scales = x.as_subclass(torch.Tensor), scales.as_subclass(torch.Tensor)
    return _RecomputedSum.apply(convolve, branches, x, scales, *parameters)


class _RecomputedSum(torch.autograd.Function):
    """With z the convolution's output and ẑ = (z - mean) / std, each branch adds scale * (gamma * ẑ + beta)."""

    @staticmethod
    def forward(ctx: Any, convolve: Any, branches: Any, x: Any, scales: Any, *parameters: Any) -> Any:
        device = x.device.type
        ctx.autocast = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        ctx.convolve, ctx.branches = convolve, branches
        ctx.fixed = [_fixed_statistics(norm, gamma) for (norm, _, _), gamma in zip(branches, parameters[1::3])]
        ctx.save_for_backward(x, scales, *parameters)
        x, output = fast_layout(x), None
        for scale, kernel, (norm, dilation, padding) in zip(scales.split(1, dim=1), parameters[::3], branches):
            features = norm(convolve(x, kernel, None, 1, padding, dilation))
            output = features * scale if output is None else output.addcmul_(features, scale)
            del features  # before the next branch makes its own
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, scales, *parameters = ctx.saved_tensors
        grad_x, grad_scales, grads = torch.zeros_like(x), [], []
        for k, (norm, dilation, padding) in enumerate(ctx.branches):
            kernel, gamma, beta = parameters[3 * k : 3 * k + 3]
            with torch.autocast(*ctx.autocast):
                z = ctx.convolve(fast_layout(x), kernel, None, 1, padding, dilation)
            statistics = ctx.fixed[k] or _batch_statistics(z, norm.eps)
            grad_scale, *grads_of_norm = _differentiate_norm(grad, z, scales[:, k : k + 1], gamma, beta, *statistics)
            grad_scales.append(grad_scale)
            grads += [_differentiate_convolution(z, x, kernel, dilation, padding, grad_x), *grads_of_norm]
            del z
        return None, None, grad_x, torch.cat(grad_scales, dim=1), *grads


def _differentiate_norm(
    grad: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    gamma: torch.Tensor,
    beta: torch.Tensor,
    mean: torch.Tensor,
    invstd: torch.Tensor,
    count: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put the gradient of ``z`` into ``z``; return those of ``weight``, ``gamma`` and ``beta``."""
    scale = gamma * invstd
    shift = beta - mean * scale
    grad_weight = []
    # sums of the gradient g of gamma ẑ + beta, and of ẑ g
    total, projected = torch.zeros_like(mean), torch.zeros_like(mean)
    for part, features, factor in _slabs(grad, z, weight):
        grad_weight.append((torch.addcmul(shift, features, scale) * part).sum(1, keepdim=True))
        g = part * factor
        total += _channel_sum(g)
        projected += _channel_sum(g.mul_(features - mean)) * invstd
        del g
    for part, features, factor in _slabs(grad, z, weight):
        normalised = (features - mean).mul_(invstd)
        g = (part * factor).sub_(total / count).addcmul_(normalised, projected, value=-1 / count)
        features.copy_(g.mul_(scale))
        del g, normalised
    return torch.cat(grad_weight, dim=2), projected, total


def _differentiate_convolution(
    grad: torch.Tensor, x: torch.Tensor, kernel: torch.Tensor, dilation: int, padding: int, grad_x: torch.Tensor
) -> torch.Tensor:
    """Add the gradient of ``x`` to ``grad_x``; return that of ``kernel``.

    A plane of the kernel, its third along the first axis, takes each row of the output from one row of the input.
    """
    others = x.ndim - 3
    geometry = [1, *[1] * others], [0, *[padding] * others], [1, *[dilation] * others], False, [0, *[0] * others], 1
    grad_kernel = torch.zeros_like(kernel)
    for tap, (plane, grad_plane) in enumerate(zip(kernel.to(grad.dtype).split(1, 2), grad_kernel.split(1, 2))):
        shift = tap * dilation - padding
        first, last = max(0, -shift), min(grad.shape[2], x.shape[2] - shift)
        if first >= last:
            continue  # it sees nothing but padding
        inside = slice(first + shift, last + shift)
        for part, rows, out in _slabs(grad[:, :, first:last], x[:, :, inside], grad_x[:, :, inside]):
            rows = fast_layout(rows.to(grad.dtype))
            grads = torch.ops.aten.convolution_backward(part, rows, plane, None, *geometry, [True, True, False])
            out += grads[0]
            grad_plane += grads[1]
            del rows, grads
    return grad_kernel


def fast_layout(x: torch.Tensor) -> torch.Tensor:
    """Convert to channels last on CPU, oneDNN's fast layout."""
    if x.device.type != "cpu" or x.dtype == torch.float64 or x.ndim < 4:
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


def _fixed_statistics(norm: nn.Module, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float] | None:
    """Return mean and 1 / std per channel and an infinite count, or None if they depend on the batch."""
    if not isinstance(norm, _BatchNorm):
        return torch.zeros_like(like), torch.ones_like(like), math.inf
    if norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    mean, invstd = norm.running_mean.clone(), (norm.running_var + norm.eps).rsqrt()
    return mean.reshape(like.shape), invstd.reshape(like.shape), math.inf


def _batch_statistics(z: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return mean and 1 / std per channel, without copying ``z``, and the number of values of each."""
    count = z.numel() / z.shape[1]
    mean = _channel_sum(z) / count
    squares = sum((_channel_sum((part - mean).square_()) for (part,) in _slabs(z)), torch.zeros_like(mean))
    return mean, (squares / count + eps).rsqrt(), count


def _channel_sum(z: torch.Tensor) -> torch.Tensor:
    return z.sum([0, *range(2, z.ndim)], keepdim=True, dtype=torch.promote_types(z.dtype, torch.float32))


def _slabs(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(tensor.tensor_split(min(_SLABS, tensor.shape[2]), dim=2) for tensor in tensors))
