# SPDX-License-Identifier: Apache-2.0
"""Autofocus convolutions for existing networks.

Qin et al.: "Autofocus Layer for Semantic Segmentation", MICCAI 2018, https://arxiv.org/abs/1805.08403. The paper
replaces the last n dilated convolutions of its own network (AFN-n).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from monai_attn.adapt.features import CONVOLUTIONS, dry_run
from monai_attn.adapt.places import Places, places_of
from monai_attn.blocks.autofocus import AutofocusConv
from monai_attn.blocks.gate import Gate

__all__ = ["FocusedConv", "ZeroInitGate", "autofocus"]


class ZeroInitGate(Gate):
    r"""Gate that starts with all weight on one scale.

    The map is :math:`e + s\,(\mathrm{softmax}(a) - e)` with :math:`e` one at the scale of index ``first`` and zero
    elsewhere. The learnable strength :math:`s` starts at zero; at one the map is the softmax. In the first step only
    :math:`s` has a gradient.

    Example:
        >>> ZeroInitGate(1)(torch.rand(1, 4, 8, 8))[0, :, 0, 0]
        tensor([0., 1., 0., 0.], grad_fn=<SelectBackward0>)
    """

    def __init__(self, first: int) -> None:
        super().__init__("softmax")
        self.first = first
        self.strength = nn.Parameter(torch.zeros([]))

    def reset_parameters(self) -> None:
        """Put all weight on the one scale again."""
        nn.init.zeros_(self.strength)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Map logits (B, K, *spatial) to the attention map (B, K, *spatial)."""
        weights = self.activation(logits)
        scales = torch.arange(logits.shape[1], device=logits.device).reshape([-1] + [1] * (logits.dim() - 2))
        start = (scales == self.first).to(weights.dtype)
        return start + self.strength * (weights - start)


class FocusedConv(nn.Module):
    """Autofocus convolution in place of a plain one.

    It shares the kernel and bias of the plain convolution, and at first gives the same output up to rounding. Weights
    of the plain network can be loaded before, or after with ``strict=False``, since the kernel's old key is accepted.

    Args:
        conv: the plain convolution, of kernel size 3 and stride 1.
        dilations: the scales; the plain convolution's own dilation must be among them.

    Example:
        >>> conv = nn.Conv2d(4, 6, 3, padding=1)
        >>> FocusedConv(conv, (1, 2, 4))(torch.rand(1, 4, 9, 9)).shape
        torch.Size([1, 6, 9, 9])
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, dilations: Sequence[int]) -> None:
        super().__init__()
        dims = conv.weight.ndim - 2
        self.focus = AutofocusConv(dims, conv.in_channels, conv.out_channels, dilations=dilations, norm=None)
        self.focus.gate = ZeroInitGate(list(dilations).index(conv.dilation[0]))
        self.to(conv.weight.device, conv.weight.dtype).train(conv.training)
        self.focus.conv.weight = conv.weight
        self.bias = conv.bias
        self.register_load_state_dict_pre_hook(_rename_kernel)

    def reset_parameters(self) -> None:
        """Draw the bias as a convolution does; the kernel has a module of its own."""
        if self.bias is not None:
            bound = self.focus.conv.weight[0].numel() ** -0.5
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, in_channels, *spatial) to (B, out_channels, *spatial)."""
        output = self.focus(x)
        bias = self.bias
        return output if bias is None else output + bias.reshape([-1] + [1] * (x.dim() - 2))


def _rename_kernel(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    if f"{prefix}weight" in state_dict:
        state_dict[f"{prefix}focus.conv.weight"] = state_dict.pop(f"{prefix}weight")


def autofocus(
    network: nn.Module,
    *,
    last: int | None = None,
    where: Callable[[str, nn.Module], bool] | None = None,
    dilations: Sequence[int] | None = None,
    size: Sequence[int] | None = None,
) -> nn.Module:
    """Replace convolutions of a network by autofocus convolutions.

    Eligible convolutions have kernel size 3, stride 1, equal dilations, two or more input channels, no groups, and zero
    padding that keeps the size. Each becomes a :class:`FocusedConv`, and at first the network's output is unchanged up
    to rounding. A layer of K scales has K times the multiplications of the plain one, plus its attention.

    Args:
        network: the network, which is changed in place and returned.
        last: how many to replace, counted from the end in the order in which the network runs them.
        where: instead of ``last``, a function that returns for a path and its module whether to replace it.
        dilations: the scales, rising; they must contain the dilation of every convolution that is replaced. By
            default 1, 3, 5 and 7 times its own, which for the paper's dilation of 2 are the paper's 2, 6, 10 and 14.
        size: a valid image size, needed for ``last`` if the network's class is not in the table of
            :func:`monai_attn.adapt.places_of`.

    Raises:
        ValueError: if neither or both of ``last`` and ``where`` are given, fewer convolutions are eligible than
            ``last``, none is chosen by ``where``, or ``dilations`` lacks a convolution's own dilation.
        TypeError: for ``last`` without ``size``, if the network's class is not in the table.

    Example:
        >>> from monai.networks.nets import UNet
        >>> network = autofocus(UNet(2, 1, 3, (8, 16, 32), (2, 2), num_res_units=2), last=2, dilations=(1, 2, 4))
        >>> [path for path, module in network.named_modules() if isinstance(module, FocusedConv)]
        ['model.1.submodule.2.1.conv.unit0.conv', 'model.2.1.conv.unit0.conv']
    """
    if (last is None) == (where is None):
        raise ValueError("autofocus needs either last=<number> or where=<function of path and module>, and not both.")
    eligible = _eligible(network)
    if where is not None:
        chosen = [path for path, conv in eligible.items() if where(path, conv)]
        if not chosen:
            found = f"the {len(eligible)} eligible convolutions of {type(network).__name__}: {[*eligible]}"
            raise ValueError(f"where chooses none of {found}.")
    else:
        chosen = _last(network, eligible, last or 0, size)
    # everything that can fail comes before the first change
    focused = {id(eligible[path]): _focused(path, eligible[path], dilations) for path in chosen}
    for path, module in list(network.named_modules(remove_duplicate=False)):  # a shared one at each of its paths
        if id(module) in focused:
            network.set_submodule(path, focused[id(module)])
    return network


def _eligible(network: nn.Module) -> dict[str, Any]:
    inside = {id(part) for layer in network.modules() if isinstance(layer, AutofocusConv) for part in layer.modules()}
    outside = {path: module for path, module in network.named_modules() if id(module) not in inside}
    return {path: module for path, module in outside.items() if type(module) in CONVOLUTIONS and _fits(module)}


def _fits(conv: Any) -> bool:
    same_size = conv.padding in ("same", conv.dilation) and conv.padding_mode == "zeros"
    plain = {*conv.kernel_size} == {3} and {*conv.stride} == {1} and len({*conv.dilation}) == 1 and conv.groups == 1
    # a child, such as the block of `recalibrate`, would be lost
    return same_size and plain and conv.in_channels >= 2 and not list(conv.children())


def _last(network: nn.Module, eligible: dict[str, Any], count: int, size: Sequence[int] | None) -> list[str]:
    """Return the paths of the last eligible convolutions that the network runs."""
    places = Places([], [], None, None, divisor=1, size=size) if size else places_of(network)
    ran = list(dry_run(network, places, eligible, must_run=False))
    if not 1 <= count <= len(ran):
        what = "convolutions of kernel size 3 and stride 1, without groups, with 2 or more input channels"
        raise ValueError(f"last={count} must be 1 to {len(ran)}: {type(network).__name__} runs {len(ran)} {what}.")
    return ran[-count:]


def _focused(path: str, conv: Any, dilations: Sequence[int] | None) -> FocusedConv:
    own = conv.dilation[0]
    if dilations is not None and own not in dilations:
        raise ValueError(f"dilations={tuple(dilations)} must contain the dilation of {path}, {own}; add it.")
    return FocusedConv(conv, dilations or [own * factor for factor in (1, 3, 5, 7)])
