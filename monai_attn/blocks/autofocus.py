# SPDX-License-Identifier: Apache-2.0
"""The autofocus layer: one kernel at several dilations, and attention that chooses among them at every voxel.

Qin, Kamnitsas, Ancha, Nanavati, Cottrell, Criminisi, Nori: "Autofocus Layer for Semantic Segmentation", MICCAI 2018,
https://arxiv.org/abs/1805.08403, Fig. 2 and eqs. 1 to 3.

Differs from the authors' code (yaq007/Autofocus-Layer) in: the output keeps the size of the input (``crop=2`` gives
theirs, with equal values); 1D and 2D besides 3D; any normalisation; and no bias on the branches, where the following
normalisation makes it inert. The code, unlike the paper, normalises every scale on its own and stops the gradient in
front of the attention; so do the defaults here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from monai.networks.layers.utils import get_norm_layer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from monai_attn.blocks.gate import Gate
from monai_attn.blocks.recompute import can_recompute, fast_layout, recomputed_sum

__all__ = ["AutofocusConv", "crop_border"]

_CONVOLVE = (F.conv1d, F.conv2d, F.conv3d)


def crop_border(x: torch.Tensor, margin: int) -> torch.Tensor:
    """Take ``margin`` voxels off every side of (B, C, *spatial); the result is a view."""
    for dim in range(2, x.dim()):
        x = x.narrow(dim, margin, x.shape[dim] - 2 * margin)
    return x


class AutofocusConv(nn.Module):
    r"""Autofocus convolution: :math:`\sum_k \Lambda_k \cdot n_k(W \star_{r_k} x)` (Fig. 2, eqs. 1 to 3).

    The branches convolve ``x`` with one kernel :math:`W` at the dilations :math:`r_k`; each has its normalisation
    :math:`n_k`. The attention :math:`\Lambda` = softmax(conv1(relu(conv3(x)))) holds one weight per scale and voxel.
    No activation follows.

    In evaluation without gradients, batch normalisation goes into the kernels and the branches are summed in place:
    the same function to rounding, in less time and memory.

    Args:
        spatial_dims: number of spatial dimensions, 1, 2 or 3.
        in_channels: number of input channels, at least 2.
        out_channels: number of output channels.
        dilations: the paper's r, rising; their number is its K.
        norm: normalisation of each branch, as a name or ``(name, {args})``; ``None`` for none.
        crop: voxels that the output loses at every side, at most the smallest dilation. The authors' code loses 2.
        detach_attention: whether the attention sends no gradient to the input, as in the authors' code.
        share_weights: whether all branches have one kernel, as in the paper; or each its own.
        memory_efficient: whether to compute the branches again in the backward pass instead of keeping them; for batch
            normalisation and none.

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
        """The map (B, K, *cropped), one weight per scale and voxel of the output."""
        return self.gate(self.logits(x))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """The map before the softmax."""
        features = x.detach() if self.detach_attention else x
        return self.attention(crop_border(features, max(self.crop - 1, 0)))

    def kernel(self, k: int) -> torch.Tensor:
        """The kernel of scale ``k``, (out_channels, in_channels, 3, ...)."""
        return self.conv.weight.chunk(self.num_kernels)[k % self.num_kernels]

    def branch(self, x: torch.Tensor, k: int) -> torch.Tensor:
        """Features of scale ``k`` before normalisation, (B, out_channels, *cropped)."""
        dilation = self.dilations[k]
        return self.convolve(x, self.kernel(k), None, 1, dilation - self.crop, dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to (B, out_channels, *(spatial - 2 crop))."""
        if self.crop > 0 and min(x.shape[2:]) <= 2 * self.crop:
            raise ValueError(f"crop={self.crop} needs more than {2 * self.crop} voxels a side, got {x.shape[2:]}.")
        if not torch.jit.is_scripting():
            compiling = torch.jit.is_tracing() or torch.compiler.is_compiling()
            if not compiling and self._can_fold():
                return self._folded(x)
            if not compiling and self._can_recompute():
                return self._recomputed(x)
        scales = self.attend(x)
        output = torch.zeros([], dtype=x.dtype, device=x.device)
        for k, norm in enumerate(self.norms):
            output = output + scales[:, k : k + 1] * norm(self.branch(x, k))
        return output

    def _can_fold(self) -> bool:
        """Whether every normalisation is a fixed scale and shift, and no gradient is wanted."""
        if self.training or torch.is_grad_enabled():
            return False
        return all(
            isinstance(norm, nn.Identity)
            or (isinstance(norm, _BatchNorm) and not norm.training and norm.running_mean is not None)
            for norm in self.norms
        )

    def _can_recompute(self) -> bool:
        return self.memory_efficient and torch.is_grad_enabled() and all(can_recompute(norm) for norm in self.norms)

    @torch.jit.unused
    def _folded(self, x: torch.Tensor) -> torch.Tensor:
        """``forward`` with the normalisation inside the kernels, at the memory of one branch and the sum."""

        def branch(k: int) -> torch.Tensor:
            kernel, shift = _fold(self.kernel(k), self.norms[k])
            dilation = self.dilations[k]
            return self.convolve(x, kernel, shift, 1, dilation - self.crop, dilation)

        x = fast_layout(x)
        scales = self.attend(x)
        output = branch(0)
        scales = scales.to(output.dtype)
        output.mul_(scales[:, :1])
        for k in range(1, len(self.norms)):
            output.addcmul_(branch(k), scales[:, k : k + 1])
        return output

    @torch.jit.unused
    def _recomputed(self, x: torch.Tensor) -> torch.Tensor:
        """``forward`` that keeps only ``x`` and the attention for the backward pass."""
        scales = self.gate(checkpoint(self.logits, x, use_reentrant=False, preserve_rng_state=False))
        kernels = [self.kernel(k) for k in range(len(self.norms))]
        return recomputed_sum(x, scales, kernels, self.norms, self.dilations, self.crop, self.convolve)


def _check(spatial_dims: int, in_channels: int, dilations: Sequence[int], crop: int) -> None:
    if spatial_dims not in (1, 2, 3):
        raise ValueError(f"spatial_dims must be 1, 2 or 3, got {spatial_dims}.")
    if in_channels < 2:
        raise ValueError(f"in_channels must be at least 2, the attention has half of them; got {in_channels}.")
    if not dilations or dilations[0] < 1 or sorted(set(dilations)) != list(dilations):
        raise ValueError(f"dilations must be positive and rising, such as (2, 6, 10, 14), got {tuple(dilations)}.")
    if not 0 <= crop <= dilations[0]:
        raise ValueError(f"crop must be from 0 to the smallest dilation, {dilations[0]}, got {crop}.")


def _fold(kernel: torch.Tensor, norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The kernel and the bias that do what ``norm`` in evaluation does after the kernel."""
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return kernel, None
    dtype = torch.promote_types(kernel.dtype, torch.float32)
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    shift = -norm.running_mean.to(dtype) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.to(dtype)
    folded = kernel.to(dtype) * scale.reshape([-1] + [1] * (kernel.ndim - 1))
    return folded.to(kernel.dtype), shift.to(kernel.dtype)
