# SPDX-License-Identifier: Apache-2.0
"""Autofocus layer: attention over several dilations of one kernel.

Qin, Kamnitsas, Ancha, Nanavati, Cottrell, Criminisi, Nori: "Autofocus Layer for Semantic Segmentation", MICCAI 2018,
https://arxiv.org/abs/1805.08403, Fig. 1, Sec. 2.2, eqs. 2 and 3.

Differs from the authors' code (yaq007/Autofocus-Layer) in: the output keeps the size of the input (``crop=2`` gives
theirs, with equal values); 1D and 2D besides 3D; any normalization; and no bias on the branches, which the following
normalization would cancel. Like the code and unlike the paper, the defaults normalize every scale separately and stop
the gradient before the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_norm_layer
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.fx import Proxy
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils.checkpoint import checkpoint

from monai_attn.blocks.gate import Gate, check_dims

__all__ = ["AutofocusConv", "crop_border"]

_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)
_KERNEL_GRADIENT = (conv1d_weight, conv2d_weight, conv3d_weight)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def crop_border(x: torch.Tensor, margin: int) -> torch.Tensor:
    """Take ``margin`` voxels off every side of (B, C, *spatial); the result is a view."""
    for dim in range(2, x.dim() if margin > 0 else 2):
        x = x.narrow(dim, margin, x.shape[dim] - 2 * margin)
    return x


class AutofocusConv(nn.Module):
    r"""Autofocus convolution: :math:`\sum_k \Lambda_k \cdot n_k(W \star_{r_k} x)` (Fig. 1, eqs. 2, 3).

    The branches convolve ``x`` with one kernel :math:`W` at the dilations :math:`r_k`; each has its normalization
    :math:`n_k`. The attention :math:`\Lambda` = softmax(conv1(relu(conv3(x)))) holds one weight per scale and voxel.
    No activation follows.

    In evaluation without gradients, batch normalization is folded into the kernels and the branches are summed in
    place. This saves time and memory; results are equal up to rounding.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        in_channels: number of input channels, at least 2.
        out_channels: number of output channels.
        dilations: the paper's r, rising; their number is its K.
        norm: normalization of each branch, as a name or ``(name, {args})``; ``None`` for none.
        crop: voxels that the output loses at every side, at most the smallest dilation. The authors' code loses 2.
        detach_attention: whether the attention sends no gradient to the input, as in the authors' code.
        share_weights: whether all branches share one kernel, as in the paper.
        memory_efficient: whether to recompute the branches in the backward pass instead of keeping them; saves most
            memory with batch normalization or none.

    Attributes:
        radius: how far the output sees, in voxels: the largest dilation.

    Raises:
        ValueError: if an argument is out of its range, or an input is too small for ``crop``.

    Example:
        >>> AutofocusConv(3, 40, 50)(torch.rand(1, 40, 9, 8, 7)).shape
        torch.Size([1, 50, 9, 8, 7])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        dilations: Sequence[int] = (2, 6, 10, 14),
        norm: str | tuple | None = "batch",
        crop: int = 0,
        detach_attention: bool = True,
        share_weights: bool = True,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        _check(spatial_dims, in_channels, dilations, crop)
        conv = Conv[Conv.CONV, spatial_dims]
        self.dilations = [int(dilation) for dilation in dilations]
        self.radius = self.dilations[-1]
        self.crop = crop
        self.detach_attention = detach_attention
        self.memory_efficient = memory_efficient
        self.num_kernels = 1 if share_weights else len(self.dilations)
        self.convolve = _CONVOLVE[spatial_dims - 1]
        # one convolution holds all kernels; it is never called, its weight serves at every dilation
        self.conv = conv(in_channels, out_channels * self.num_kernels, kernel_size=3, bias=False)
        self.norms = nn.ModuleList(get_norm_layer(norm or "", spatial_dims, out_channels) for _ in self.dilations)
        self.attention = nn.Sequential(
            conv(in_channels, in_channels // 2, kernel_size=3, padding=0 if crop else 1),
            nn.ReLU(inplace=True),
            conv(in_channels // 2, len(self.dilations), kernel_size=1),
        )
        self.gate = Gate("softmax")

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map (B, K, *cropped), a weight per scale and voxel."""
        return self.gate(self.logits(x))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the map before the softmax."""
        features = x.detach() if self.detach_attention else x
        return self.attention(crop_border(features, max(self.crop - 1, 0)))

    def branch(self, x: torch.Tensor, k: int) -> torch.Tensor:
        """Return features of scale ``k`` before normalization, (B, out_channels, *cropped)."""
        return self._convolve(x, self._kernel(k), None, k)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to (B, out_channels, *(spatial - 2 crop))."""
        if self.crop > 0 and min(x.shape[2:]) <= 2 * self.crop:
            raise ValueError(f"crop={self.crop} needs more than {2 * self.crop} voxels a side, got {x.shape[2:]}.")
        if not torch.jit.is_scripting():
            compiling = torch.jit.is_tracing() or torch.compiler.is_compiling() or _is_transformed(x)
            if not compiling and self._can_fold():
                return self._folded(x)
            if not compiling and self.memory_efficient and torch.is_grad_enabled():
                return self._recomputed(x)
        scales = self.attend(x)
        output = torch.zeros([], dtype=x.dtype, device=x.device)
        for k, norm in enumerate(self.norms):
            output = output + scales[:, k : k + 1] * norm(self.branch(x, k))
        return output

    def _kernel(self, k: int) -> torch.Tensor:
        return self.conv.weight.chunk(self.num_kernels)[k % self.num_kernels]

    def _convolve(self, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None, k: int) -> torch.Tensor:
        dilation = self.dilations[k]
        return self.convolve(x, kernel, bias, 1, dilation - self.crop, dilation)

    def _can_fold(self) -> bool:
        """Whether every normalization is a fixed scale and shift, and no gradient is wanted."""
        return not (self.training or torch.is_grad_enabled()) and all(
            isinstance(norm, nn.Identity)
            or (isinstance(norm, _BATCH_NORMS) and not norm.training and norm.running_mean is not None)
            for norm in self.norms
        )

    @torch.jit.unused
    def _folded(self, x: torch.Tensor) -> torch.Tensor:
        """``forward`` with the normalization inside the kernels, at the memory of one branch and the sum."""
        x = _fast_layout(x)
        scales = self.attend(x)
        output = self._folded_branch(x, 0)
        scales = scales.to(output.dtype)
        output.mul_(scales[:, :1])
        for k in range(1, len(self.norms)):
            output.addcmul_(self._folded_branch(x, k), scales[:, k : k + 1])
        return output

    @torch.jit.unused
    def _folded_branch(self, x: torch.Tensor, k: int) -> torch.Tensor:
        norm, kernel, shift = self.norms[k], self._kernel(k), None
        if isinstance(norm, _BATCH_NORMS) and norm.running_mean is not None and norm.running_var is not None:
            statistics = norm.running_mean, norm.running_var, norm.eps
            kernel, shift = fuse_conv_bn_weights(kernel, None, *statistics, norm.weight, norm.bias)
        return self._convolve(x, kernel, shift, k)

    @torch.jit.unused
    def _recomputed(self, x: torch.Tensor) -> torch.Tensor:
        """``forward`` that keeps only ``x`` and the attention, and computes the branches again in the backward pass."""
        x = x.as_subclass(torch.Tensor)  # a MetaTensor makes views, which nothing may change in place
        scales = self.gate(checkpoint(self.logits, x, use_reentrant=False, preserve_rng_state=False))
        output = x.new_zeros([])
        for k, (norm, scale) in enumerate(zip(self.norms, scales.split(1, dim=1))):
            branch = _Branch.apply(self, k, x, scale, self._kernel(k), *norm.parameters())
            output = branch if k == 0 else output.add_(branch)
        return output


class _Branch(torch.autograd.Function):
    """A weighted branch that keeps only its inputs, and computes its features again in the backward pass.

    There, the gradient of the features takes their place, a few channels at a time; then follows the gradient of the
    kernel, and last that of the input, so that the large buffers are held one after the other.
    """

    @staticmethod
    def forward(ctx: Any, layer: AutofocusConv, k: int, x: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, *inputs)
        ctx.layer, ctx.k, ctx.training = layer, k, layer.norms[k].training
        device = "cpu" if x.is_meta else x.device.type
        ctx.autocast = torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        return layer.norms[k](layer._convolve(_fast_layout(x), inputs[1], None, k)) * inputs[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layer, dilation = ctx.layer, ctx.layer.dilations[ctx.k]
        norm = copy(layer.norms[ctx.k]).train(ctx.training)  # its mode may have changed since the forward pass
        x, scale, kernel, *parameters = ctx.saved_tensors
        scale, *parameters = (tensor.detach().requires_grad_() for tensor in (scale, *parameters))
        # copies, as the statistics must not be updated the second time
        state = {name: buffer.clone() for name, buffer in norm.named_buffers()}
        state.update(zip(dict(norm.named_parameters()), parameters))
        with ctx.autocast:
            features = layer._convolve(_fast_layout(x), kernel, None, ctx.k)
            # in the layout of x, as the gradient of the kernel would copy them otherwise
            features = features.contiguous() if x.is_contiguous() else features
            step = 8 if isinstance(norm, (nn.Identity, *_BATCH_NORMS)) else features.shape[1]
            for start in range(0, features.shape[1], step):
                channels = slice(start, start + step)
                part = features[:, channels].contiguous().detach().requires_grad_()
                with torch.enable_grad():
                    tensors = {name: tensor[channels] if tensor.ndim else tensor for name, tensor in state.items()}
                    output = functional_call(norm, tensors, part) * scale
                output.backward(grad[:, channels].contiguous())
                features[:, channels] = part.grad
        del part, output  # they would keep the features' memory
        x, kernel, padding = x.to(features.dtype), kernel.to(features.dtype), dilation - layer.crop
        of_kernel = _KERNEL_GRADIENT[x.ndim - 3](x, kernel.shape, features, 1, padding, dilation)
        features, turned = _fast_layout(features), kernel.transpose(0, 1).flip(tuple(range(2, x.ndim)))
        of_x = layer.convolve(features, turned, None, 1, dilation + layer.crop, dilation)
        return None, None, of_x, scale.grad, of_kernel, *(parameter.grad for parameter in parameters)


def _check(spatial_dims: int, in_channels: int, dilations: Sequence[int], crop: int) -> None:
    check_dims(spatial_dims)
    if in_channels < 2:
        raise ValueError(f"in_channels must be at least 2, the attention has half of them; got {in_channels}.")
    if not dilations or dilations[0] < 1 or sorted({int(dilation) for dilation in dilations}) != list(dilations):
        raise ValueError(f"dilations must be rising integers from 1, such as (2, 6, 10), got {tuple(dilations)}.")
    if not 0 <= crop <= dilations[0]:
        raise ValueError(f"crop must be from 0 to the smallest dilation, {dilations[0]}, got {crop}.")


def _is_transformed(x: Any) -> bool:
    """Return whether torch.fx traces, or torch.func transforms, what is done to a tensor."""
    return isinstance(x, Proxy) or torch._C._functorch.is_functorch_wrapped_tensor(x)


def _fast_layout(x: torch.Tensor) -> torch.Tensor:
    """Put the channels last on a CPU, where oneDNN then neither copies tensors nor falls back to slower kernels."""
    if x.device.type != "cpu" or x.dtype == torch.float64 or x.ndim < 4:
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
