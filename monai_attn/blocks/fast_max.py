# SPDX-License-Identifier: Apache-2.0
r"""The larger of both recalibrations of scSE, :math:`\max(U g_c, U g_s)`, in less time and memory than by autograd.

Of the products, autograd keeps both, and its backward pass reads or writes as much as the features some 50 times.
:func:`fast_max` keeps only the features and the maps, and works on pieces that stay in the processor's cache.

Where :func:`can_fuse` says so, the compiled passes of :mod:`monai_attn.blocks.scse_kernels` do all that reads the
features: :func:`squeeze`, then the gates in between by PyTorch, then :func:`excite`. Forward, the features are read
twice; backward, too: by :func:`excite` for the gradients of the maps, and by :func:`squeeze`, which knows the other
gradients then, for that of the features. To this end ``excite`` hands the gradient of its output on to ``squeeze``,
along a tensor without data that connects the two.

With equal maps the values are bitwise those of the definition. Sums, thus means, logits and gradients, may differ in
their last bits, but do not depend on the number of threads in the compiled passes. Where both products are equal, as at
0, each map gets half of the gradient, as by autograd. Second derivatives are computed by the definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import handle_torch_function, has_torch_function

from monai_attn.blocks import scse_kernels

__all__ = ["Link", "can_fuse", "excite", "fast_max", "larger_product", "pays_off", "squeeze"]

_PIECE = 2**19  # values of a piece for each thread: 2 MB of float32
_LEAST = {True: 2**15, False: 2**19}  # values from which on there is a gain, with gradients and without
_PLAIN = (torch.Tensor, nn.Parameter, MetaTensor)


def larger_product(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
    """Give ``max(u * channel, u * spatial)`` by its definition, eq. 4: the reference for all here."""
    return torch.maximum(u * channel, u * spatial)


def pays_off(u: torch.Tensor) -> bool:
    """Whether there is something to gain for ``u``, and the operations may be others than those of the definition."""
    if _is_watched() or type(u) not in _PLAIN:
        return False
    return u.numel() >= _LEAST[torch.is_grad_enabled()] and forward_ad._current_level < 0


def _is_watched() -> bool:
    """Whether somebody looks at the single operations: to make a program of them, to count or to transform them."""
    return bool(
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
    )


# --- by PyTorch alone --------------------------------------------------------------------------------------------


def fast_max(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> torch.Tensor:
    """Compute :func:`larger_product`, where it :func:`pays_off`.

    Args:
        u: features (B, C, *spatial).
        channel: channel map (B, C, 1, ...).
        spatial: spatial map (B, 1, *spatial).
    """
    if has_torch_function((u, channel, spatial)):
        return handle_torch_function(fast_max, (u, channel, spatial), u, channel, spatial)
    if not _are_maps_of(u, channel, spatial) or u.numel() == 0:
        return larger_product(u, channel, spatial)
    return _Max.apply(*_plain(u, channel, spatial))


class _Max(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Any, channel: Any, spatial: Any) -> Any:
        ctx.save_for_backward(u, channel, spatial)
        y = torch.empty_like(u)
        for part, g, s, result in _pieces(u, channel, spatial, y):
            torch.maximum(torch.mul(part, g, out=result), part * s, out=result)
        return y

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        u, channel, spatial = ctx.saved_tensors
        if not _is_first_and_plain(grad):
            return _differentiate(larger_product, (u, channel, spatial), (grad,))
        grad_u, grad_spatial = torch.empty_like(u), torch.empty_like(spatial)
        grad_channel = torch.zeros_like(channel, dtype=torch.promote_types(u.dtype, torch.float32))
        for part, g, s, dy, du, dg, ds in _pieces(u, channel, spatial, grad, grad_u, grad_channel, grad_spatial):
            # how much of the larger product the channel map has: 1, 0, or a half where both are equal
            share = (part * g).sub_(part * s).sign_().add_(1).div_(2)
            torch.lerp(s.expand_as(share), g.expand_as(share), share, out=du).mul_(dy)
            both = dy * part
            dg += share.mul_(both).sum(list(range(2, u.ndim)), keepdim=True, dtype=dg.dtype)
            torch.sum(both.sub_(share), 1, keepdim=True, out=ds)
        return grad_u, grad_channel.to(u.dtype), grad_spatial


def _pieces(u: torch.Tensor, *others: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Views of the same items and rows of all tensors, small enough for the cache of a processor."""
    values = _PIECE * torch.get_num_threads() if u.device.type == "cpu" else u.numel()
    items = max(1, values // u[0].numel())
    rows = max(1, values // u[0, :, 0].numel())
    for group in zip(*(tensor.split(items) for tensor in (u, *others))):
        yield from zip(*(x.split(rows, dim=2) if x.shape[2] == u.shape[2] else repeat(x) for x in group))


def _is_first_and_plain(grad: torch.Tensor) -> bool:
    """Whether nobody will derive the gradients again, and ``grad`` is one tensor in memory, not a batch of ``vmap``."""
    return not torch.is_grad_enabled() and not _is_watched() and torch._C._has_storage(grad)


def _plain(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors without the metadata of an image."""
    return [x if type(x) is torch.Tensor else x.as_subclass(torch.Tensor) for x in tensors]


def _are_maps_of(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor) -> bool:
    """Whether the maps are those of a channel and a spatial excitation of ``u``, not what a hook made of them."""
    ones = [1] * (u.ndim - 2)
    shapes = list(channel.shape) == [*u.shape[:2], *ones] and spatial.shape == (u.shape[0], 1, *u.shape[2:])
    return shapes and all((x.dtype, x.device) == (u.dtype, u.device) for x in (channel, spatial))


def _differentiate(
    function: Callable[..., Any], inputs: Sequence[torch.Tensor | None], grads: Sequence[torch.Tensor | None]
) -> tuple[torch.Tensor | None, ...]:
    """Gradients by autograd of the definition, which can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # aliases, because one input may depend on another
        aliases = [None if x is None else x.view_as(x) for x in inputs]
        outputs = function(*aliases)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        known = [(output, grad) for output, grad in zip(outputs, grads) if grad is not None]
        wanted = [x for x in aliases if x is not None and x.requires_grad]
        outputs, grads = zip(*known)
        found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=again, allow_unused=True))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in aliases)


# --- by the compiled passes --------------------------------------------------------------------------------------


class Link:
    """What :func:`squeeze` and :func:`excite` of the same features know of each other.

    Args:
        edge: a tensor of the features' shape without data, along which ``excite`` sends the gradient of its output.
        maps: filled by ``excite``'s backward pass with both maps.
    """

    def __init__(self, edge: torch.Tensor, maps: list[torch.Tensor]) -> None:
        self.edge = edge
        self.maps = maps


def can_fuse(u: torch.Tensor, conv: nn.Module) -> bool:
    """Whether the compiled passes can stand for the mean of ``u`` and for the call of ``conv``, its 1x1 convolution."""
    if not scse_kernels.has_kernels() or type(conv) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return False
    weight, u = conv.weight, u.as_subclass(torch.Tensor)
    if type(weight) is not nn.Parameter or weight.ndim != u.ndim or weight.shape[1] != u.shape[1] or not u.numel():
        return False
    hooks = conv._forward_hooks or conv._forward_pre_hooks or conv._backward_hooks or conv._backward_pre_hooks
    if hooks or _has_any_global_hook() or torch.is_autocast_enabled("cpu"):
        return False
    return all(
        x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() and not x.is_neg()
        for x in (u, weight)
    )


def squeeze(
    u: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, Link]:
    """Channel means and spatial logits of features, in one pass; where :func:`can_fuse`.

    Args:
        u: features (B, C, *spatial).
        weight: kernel (1, C, 1, ...) of the convolution that makes the logits.
        bias: its bias (1,), or None.

    Returns:
        the means (B, C), the logits (B, 1, *spatial), and the link that :func:`excite` needs.
    """
    if has_torch_function((u,)):
        return handle_torch_function(squeeze, (u,), u, weight, bias)
    maps: list[torch.Tensor] = []
    means, logits, edge = _Squeeze.apply(maps, *_plain(u), weight, bias)
    return means, logits, Link(edge, maps)


def excite(u: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor, link: Link) -> torch.Tensor:
    """Compute :func:`larger_product` in one pass.

    Args:
        u: features (B, C, *spatial), those that were squeezed.
        channel: channel map (B, C, 1, ...).
        spatial: spatial map (B, 1, *spatial).
        link: what :func:`squeeze` of ``u`` gave.
    """
    if has_torch_function((u, channel, spatial)):
        return handle_torch_function(excite, (u, channel, spatial), u, channel, spatial, link)
    if not _are_maps_of(u, channel, spatial):
        return larger_product(u, channel, spatial)
    u, channel, spatial = _plain(u, channel, spatial)
    return _Excite.apply(link.maps, u, link.edge, channel.contiguous(), spatial.contiguous())


def _squeeze_by_definition(
    u: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    convolve = (F.conv1d, F.conv2d, F.conv3d)[u.ndim - 3]
    return u.mean(list(range(2, u.ndim))), convolve(u, weight, bias)


class _Squeeze(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Any, u: Any, weight: Any, bias: Any) -> Any:
        ctx.maps = maps
        ctx.save_for_backward(u, weight, bias)
        ctx.set_materialize_grads(False)
        means, logits = scse_kernels.squeeze(u, weight)
        return means, logits if bias is None else logits.add_(bias), u.new_zeros(()).expand(u.shape)

    @staticmethod
    def backward(ctx: Any, grad_means: Any, grad_logits: Any, grad: Any) -> Any:
        u, weight, bias = ctx.saved_tensors
        if grad is None:
            gradients = _differentiate(_squeeze_by_definition, (u, weight, bias), (grad_means, grad_logits))
            return None, *gradients
        channel, spatial = ctx.maps
        grad_means = u.new_zeros(u.shape[:2]) if grad_means is None else grad_means.contiguous()
        grad_logits = torch.zeros_like(spatial) if grad_logits is None else grad_logits.contiguous()
        of_all = scse_kernels.differentiate_input(u, grad, channel, spatial, weight, grad_means, grad_logits)
        return None, *of_all[:2], None if bias is None else of_all[2]


class _Excite(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, maps: Any, u: Any, edge: Any, channel: Any, spatial: Any) -> Any:
        ctx.maps = maps
        ctx.save_for_backward(u, channel, spatial)
        return scse_kernels.excite(u, channel, spatial)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        u, channel, spatial = ctx.saved_tensors
        if not _is_first_and_plain(grad):  # nothing for `squeeze` to complete
            grad_u, *gradients = _differentiate(larger_product, (u, channel, spatial), (grad,))
            return None, grad_u, None, *gradients
        grad = grad.contiguous()
        ctx.maps[:] = channel.detach(), spatial.detach()
        return None, None, grad, *scse_kernels.differentiate_maps(u, grad, channel, spatial)
