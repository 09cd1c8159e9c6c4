# SPDX-License-Identifier: Apache-2.0
r"""Memory-efficient :math:`\max(U g_c, U g_s)` for training scSE.

Only the features and maps are kept for the backward pass, which processes chunks that fit in the CPU cache. Values are
bitwise equal to the definition. Gradients differ only in the order of sums: where both products are equal, as at 0,
each map gets half of the gradient, as in autograd. Second derivatives, forward mode and ``torch.func`` work.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from typing import Any

import torch
from monai.data import MetaTensor
from torch.overrides import handle_torch_function, has_torch_function

__all__ = ["larger_product"]

_PIECE = 2**17  # values of a piece for each thread: 512 kB of float32
_LEAST = 2**15  # values of features from which on there is a gain


def larger_product(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
    """Return ``max(u * channel, u * spatial)`` (eq. 4).

    Scripted, traced, exported and compiled networks, and small inputs, use the plain definition.

    Args:
        u: features (B, C, *spatial).
        channel: channel map (B, C, 1, ...).
        spatial: spatial map (B, 1, *spatial).

    Example:
        >>> u = torch.tensor([[[-1.0, 2.0]]])
        >>> larger_product(u, torch.tensor([[[0.5]]]), torch.tensor([[[0.25, 0.75]]]))
        tensor([[[-0.2500,  1.5000]]])
    """
    if not torch.jit.is_scripting():  # noqa: SIM102, TorchScript compiles what stands behind an `and`
        if _pays_off(u, channel, spatial):
            return _larger_product(u, channel, spatial)
    return torch.maximum(u * channel, u * spatial)


def _pays_off(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> bool:
    """Return whether large features need gradients outside tracing and compiling."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    if type(u) not in (torch.Tensor, MetaTensor) or u.numel() < _LEAST:  # such as a proxy of torch.fx
        return False
    # hooks may have put other maps in place
    shapes = [*u.shape[:2], *[1] * (u.ndim - 2)], [len(u), 1, *u.shape[2:]]
    plain = all((x.dtype, x.device) == (u.dtype, u.device) for x in (channel, spatial))
    return plain and (list(channel.shape), list(spatial.shape)) == shapes


def _larger_product(*tensors: torch.Tensor) -> torch.Tensor:
    if has_torch_function(tensors):  # a MetaTensor, whose metadata the output gets
        return handle_torch_function(_larger_product, tensors, *tensors)
    return _LargerProduct.apply(*(x.as_subclass(torch.Tensor) for x in tensors))


class _LargerProduct(torch.autograd.Function):
    @staticmethod
    def forward(*tensors: Any) -> Any:
        output = torch.empty_like(tensors[0])
        for u, channel, spatial, y in _pieces(*tensors, output):
            torch.maximum(torch.mul(u, channel, out=y), u * spatial, out=y)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        if torch.is_grad_enabled():  # for second derivatives
            return _gradients(grad, *ctx.saved_tensors)
        u, channel, spatial = ctx.saved_tensors
        # made of `grad`, they are batches where it is one
        grad_u, grad_spatial = torch.empty_like(grad), grad.new_empty(spatial.shape)
        grad_channel = grad.new_zeros(channel.shape, dtype=torch.promote_types(u.dtype, torch.float32))
        for *piece, of_u, of_channel, of_spatial in _pieces(
            u, channel, spatial, grad, grad_u, grad_channel, grad_spatial
        ):
            found = _gradients(piece[3], *piece[:3])
            of_u.copy_(found[0])
            of_channel += found[1]
            of_spatial.copy_(found[2])
        return grad_u, grad_channel.to(u.dtype), grad_spatial

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        u, channel, spatial = ctx.saved_tensors
        in_u, in_channel, in_spatial = tangents
        share = _share_of_channel(u, channel, spatial)
        return torch.lerp(in_u * spatial + u * in_spatial, in_u * channel + u * in_channel, share)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *tensors: torch.Tensor) -> tuple[torch.Tensor, int]:
        u, channel, spatial = (x[None] if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, in_dims))
        return torch.maximum(u * channel, u * spatial), 0


def _share_of_channel(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
    """Return where the channel map gives the larger product: 1, 0, or 0.5 if equal."""
    return torch.add(torch.tensor(0.5), (u * channel - u * spatial).sign_(), alpha=0.5)


def _gradients(
    grad: torch.Tensor, u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    share = _share_of_channel(u.detach(), channel.detach(), spatial.detach())
    of_both = grad * u
    of_channel = share * of_both
    return (
        grad * torch.lerp(spatial, channel, share),
        of_channel.sum(list(range(2, u.ndim)), keepdim=True),
        of_both.sum(1, keepdim=True) - of_channel.sum(1, keepdim=True),
    )


def _pieces(u: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield chunks of the same items and rows of all tensors."""
    values = _PIECE * torch.get_num_threads() if u.device.type == "cpu" else u.numel()
    items, rows = max(1, values // u[0].numel()), max(1, values // u[0, :, 0].numel())
    for group in zip(*(tensor.split(items) for tensor in (u, *others))):
        yield from zip(*(x.split(rows, dim=2) if x.shape[2] == u.shape[2] else repeat(x) for x in group))
