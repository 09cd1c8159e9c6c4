# SPDX-License-Identifier: Apache-2.0
"""What layer-by-layer inference wants to know of a network: its layers, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["LayerStep", "run_step"]

_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


@dataclass
class LayerStep:
    """One layer of a network whose method ``layerwise()`` returns a list of these.

    A step maps features to features of the same size. It may do anything at each voxel (1x1 convolutions,
    activations, normalisation by fixed statistics, sums, softmax over channels), and it may hold several convolutions
    of stride 1 with zero padding to that same size side by side, but none behind another, except 1x1.

    Args:
        run: the layer, called with the output of the step before, and with the ``skip`` if there is one.
        radius: how many voxels away the farthest input of an output voxel lies: ``dilation * (kernel_size // 2)``.
        skip: whose input ``run`` gets as its second argument, counted back: 1 is the step before, 0 nobody's. It
            is used at each voxel alone.

    Example:
        >>> convs = [torch.nn.Conv3d(4, 4, 3, padding=1) for _ in range(2)]
        >>> [LayerStep(convs[0], radius=1), LayerStep(lambda h, x: convs[1](h) + x, radius=1, skip=1)][1].skip
        1
    """

    run: Callable[..., torch.Tensor]
    radius: int
    skip: int = 0

    def then(self, function: Callable[[torch.Tensor], torch.Tensor]) -> LayerStep:
        """The same step followed by a function of each voxel, such as the classifier."""
        run = self.run
        return LayerStep(lambda *features: function(run(*features)), self.radius, self.skip)


def run_step(step: LayerStep, slab: torch.Tensor, skips: list[torch.Tensor], axis: int) -> torch.Tensor:
    """Run a step on a slab that brings ``step.radius`` further planes at both ends of an axis.

    Args:
        step: the step.
        slab: its input (B, C, *spatial), with those planes.
        skips: its further inputs, without them.
        axis: the dimension across which the slab was cut, 2 or more.

    Returns:
        the output, without those planes.

    Raises:
        ValueError: if the step is not of the kind that :class:`LayerStep` describes.
    """
    planes = slab.shape[axis] - 2 * step.radius
    with _Valid(axis, planes):
        output = step.run(slab, *skips)
    if output.shape[2:axis] + output.shape[axis + 1 :] != slab.shape[2:axis] + slab.shape[axis + 1 :] or (
        output.shape[axis] != planes
    ):
        raise ValueError(
            f"a step of radius {step.radius} made {tuple(output.shape[2:])} of a slab {tuple(slab.shape[2:])} cut "
            f"across dimension {axis}; it must keep the size, and hold one layer of convolutions."
        )
    return output


class _Valid(TorchFunctionMode):
    """Let every convolution leave out its padding along one axis, and read just the planes that it needs."""

    def __init__(self, axis: int, planes: int) -> None:
        super().__init__()
        self.axis, self.planes = axis, planes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _CONVOLUTIONS:
            return func(*args, **kwargs)
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        call = {**dict(zip(names, args)), **kwargs}
        x, weight, spatial = call["input"], call["weight"], self.axis - 2
        dims = x.ndim - 2
        stride, dilation = _each(call.get("stride", 1), dims), _each(call.get("dilation", 1), dims)
        reach = [step * (side - 1) // 2 for step, side in zip(dilation, weight.shape[2:])]
        padding = reach if call.get("padding") == "same" else _each(call.get("padding", 0), dims)
        excess = (x.shape[self.axis] - self.planes) // 2 - reach[spatial]
        if max(stride) > 1 or padding != reach or excess < 0:
            raise ValueError(
                f"a convolution of kernel {tuple(weight.shape[2:])}, stride {stride}, dilation {dilation} and padding "
                f"{padding} does not fit its step; a step holds convolutions of stride 1 that keep the size, and its "
                "radius is that of the widest."
            )
        padding[spatial] = 0
        call["input"] = x.narrow(self.axis, excess, x.shape[self.axis] - 2 * excess)
        return func(**{**call, "padding": padding})


def _each(value: Any, dims: int) -> list[int]:
    return [value] * dims if isinstance(value, int) else list(value) * (dims // len(value))
