# SPDX-License-Identifier: Apache-2.0
"""Inference on volumes of any size by networks that work at full resolution throughout, such as AFNet.

Qin et al.: "Autofocus Layer for Semantic Segmentation", MICCAI 2018, https://arxiv.org/abs/1805.08403. MONAI's sliding
window computes most voxels several times, and blends values that zero padding at the window's border has changed. Here
the result is that of the whole volume.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import convert_to_dst_type, ensure_tuple_rep
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from monai_attn.inferers.steps import LayerStep, run_step

__all__ = ["HaloInferer", "LayerwiseInferer"]


class LayerwiseInferer(Inferer):
    """Run a network over the whole volume layer by layer, and each layer slab by slab.

    The output is that of ``network(inputs)``: every layer computes every voxel once, from slabs that bring the planes
    it needs besides. At any time there are the input and output of one layer, of a residual block also its input, and
    what the layer needs for one slab. It works without gradients.

    The network must have a method ``layerwise()``, which returns its layers as a list of
    :class:`monai_attn.inferers.LayerStep`; :class:`monai_attn.nets.AFNet` and :class:`monai_attn.nets.ASPPNet` have
    it. Where it has none, takes further arguments, normalises by statistics of the volume, or where memory is short,
    ``fallback`` does the inference, with one warning.

    Args:
        slab: planes of a slab; fewer need less memory and more time.
        spatial_dim: the spatial axis across which to cut.
        max_memory: memory in GiB that features may take; by default what is free on the device. (In a container the
            free memory of the machine counts, not the container's limit.)
        fallback: the inferer for all other networks; by default MONAI's ``SlidingWindowInferer`` with a window of 75,
            the crop of the paper, and half of it as overlap.

    Raises:
        ValueError: if ``slab`` or ``max_memory`` is not positive, if the network is in training mode, or if it
            crops its output (``padding="official"``), for which there is :class:`HaloInferer`.

    Example:
        >>> from monai_attn.nets import AFNet
        >>> net = AFNet(3, 1, 2, n_autofocus=1, channels=(4, 4, 6, 6)).eval()
        >>> LayerwiseInferer(slab=8)(torch.rand(1, 1, 20, 12, 10), net).shape
        torch.Size([1, 2, 20, 12, 10])
    """

    def __init__(
        self,
        slab: int = 24,
        spatial_dim: int = 0,
        max_memory: float | None = None,
        fallback: Inferer | None = None,
    ) -> None:
        super().__init__()
        if slab < 1:
            raise ValueError(f"slab must be at least 1, got {slab}.")
        if max_memory is not None and max_memory <= 0:
            raise ValueError(f"max_memory must be positive, got {max_memory}.")
        self.slab = slab
        self.axis = spatial_dim + 2
        self.max_memory = max_memory
        self.fallback = fallback or SlidingWindowInferer(roi_size=75, overlap=0.5, mode="gaussian")
        self._warned = False

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Map a volume (B, C, *spatial) to the network's output (B, C', *spatial)."""
        if not 2 <= self.axis < inputs.ndim:
            raise ValueError(f"inputs of shape {tuple(inputs.shape)} have no spatial dimension {self.axis - 2}.")
        net = _check(network)
        if crop := getattr(net, "crop", 0):
            raise ValueError(
                f"this network's output is {crop} voxels smaller at every side; use HaloInferer, or padding='same'."
            )
        reason = _why_not(net) or ("the network gets further arguments" if args or kwargs else None)
        if reason is None:
            try:
                with torch.no_grad():
                    output = self._layer_by_layer(_plain(inputs), net.layerwise())
                return convert_to_dst_type(output, inputs, dtype=output.dtype)[0]
            except (MemoryError, torch.OutOfMemoryError) as error:
                reason = f"memory is short ({error})"
        if not self._warned:
            self._warned = True
            name = type(self.fallback).__name__
            warnings.warn(f"no layer-by-layer inference, as {reason}; using {name}.", stacklevel=2)
        return self.fallback(inputs, network, *args, **kwargs)

    def _layer_by_layer(self, x: torch.Tensor, steps: list[LayerStep]) -> torch.Tensor:
        free = _free_memory(x.device) if self.max_memory is None else self.max_memory * 2**30
        needed_until = {index: index for index in range(len(steps))}
        needed_until |= {index - step.skip: index for index, step in enumerate(steps) if step.skip}
        features = {0: x}  # by the step that they enter
        for index, step in enumerate(steps):
            skips = [features[index - step.skip]] if step.skip else []
            output = self._layer(step, features[index], skips, free)
            free -= output.nbytes
            for old in [old for old in features if needed_until[old] <= index]:
                free += features.pop(old).nbytes if old else 0  # the input stays the caller's
            features[index + 1] = output
        return features[len(steps)]

    def _layer(self, step: LayerStep, x: torch.Tensor, skips: list[torch.Tensor], free: float) -> torch.Tensor:
        axis, length, radius = self.axis, x.shape[self.axis], step.radius
        output = x
        for start in range(0, length, self.slab):
            stop = min(start + self.slab, length)
            first, last = max(start - radius, 0), min(stop + radius, length)
            missing = [0, 0] * (x.ndim - 1 - axis) + [radius - (start - first), radius - (last - stop)]
            planes = F.pad(x.narrow(axis, first, last - first), missing)
            result = run_step(step, planes, [skip.narrow(axis, start, stop - start) for skip in skips], axis)
            if start == 0:
                shape = [*result.shape[:axis], length, *result.shape[axis + 1 :]]
                _reserve(math.prod(shape) * result.element_size() + 3 * (planes.nbytes + result.nbytes), free)
                output = result.new_empty(shape)
            output.narrow(axis, start, stop - start).copy_(result)
        return output


class HaloInferer(Inferer):
    """Run a network over tiles with a halo, and put the tiles together side by side.

    Every tile reads ``halo`` voxels more at every side than it gives, as far as the volume has them, and every voxel
    is written once, without blending. With the network's ``receptive_radius`` as halo the result is that on the whole
    volume. For a network that crops its output by c voxels (its attribute ``crop``) the volume is first padded with c
    zeros: with ``padding="official"``, ``tile=47`` and ``halo=14`` this is how the authors predict (their ``test.py``).

    The equality needs normalisation by fixed statistics (batch normalisation, or none).

    Args:
        tile: side of the tiles that are written, one number or one for each dimension.
        halo: voxels read around a tile; by default the network's ``receptive_radius``.

    Raises:
        ValueError: if ``tile`` is below 1, ``halo`` is smaller than the network's crop, or the network is in training
            mode.

    Example:
        >>> from monai_attn.nets import AFNet
        >>> net = AFNet(3, 1, 2, n_autofocus=0, padding="official", channels=(4, 4, 6, 6)).eval()
        >>> HaloInferer(tile=8)(torch.rand(1, 1, 20, 12, 10), net).shape
        torch.Size([1, 2, 20, 12, 10])
    """

    def __init__(self, tile: Sequence[int] | int, halo: Sequence[int] | int | None = None) -> None:
        super().__init__()
        if min(ensure_tuple_rep(tile, 1) if isinstance(tile, int) else tile) < 1:
            raise ValueError(f"tile must be at least 1, got {tile}.")
        self.tile = tile
        self.halo = halo

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Map a volume (B, C, *spatial) to the network's output (B, C', *spatial)."""
        net, dims = _check(network), inputs.ndim - 2
        crop = int(getattr(net, "crop", 0))
        tile = ensure_tuple_rep(self.tile, dims)
        halo = ensure_tuple_rep(net.receptive_radius if self.halo is None else self.halo, dims)
        if min(halo) < crop:
            raise ValueError(f"halo must be at least {crop}, which the network takes off every side, got {min(halo)}.")
        padded = F.pad(_plain(inputs), [crop] * (2 * dims))
        output = padded
        for index, start in enumerate(product(*(range(0, n, t) for n, t in zip(inputs.shape[2:], tile)))):
            stop = [min(s + t, n) for s, t, n in zip(start, tile, inputs.shape[2:])]
            first = [max(s + crop - h, 0) for s, h in zip(start, halo)]
            last = [min(s + crop + h, n) for s, h, n in zip(stop, halo, padded.shape[2:])]
            result = network(padded[_box(first, last)], *args, **kwargs)
            if index == 0:
                output = result.new_empty([*result.shape[:2], *inputs.shape[2:]])
            # output voxel i of the network stands at voxel first + i of the volume
            inside = _box([s - f for s, f in zip(start, first)], [s - f for s, f in zip(stop, first)])
            output[_box(start, stop)] = result[inside]
        return convert_to_dst_type(output, inputs, dtype=output.dtype)[0]


def _box(first: Sequence[int], last: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), slice(None), *(slice(a, b) for a, b in zip(first, last)))


def _plain(inputs: torch.Tensor) -> torch.Tensor:
    return inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs


def _check(network: Any) -> Any:
    """The network itself, out of a wrapper for several devices, if it is in evaluation mode."""
    if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        network = network.module
    if getattr(network, "training", False):
        raise ValueError("the network is in training mode, where parts and whole differ; call network.eval() first.")
    return network


def _why_not(network: Any) -> str | None:
    """Why a network cannot be run layer by layer."""
    if not hasattr(network, "layerwise"):
        return f"{type(network).__name__} has no method layerwise()"
    for module in network.modules():
        by_volume = isinstance(module, (_InstanceNorm, nn.GroupNorm, nn.LayerNorm))
        if by_volume or (isinstance(module, _BatchNorm) and module.running_mean is None):
            return f"{type(module).__name__} normalises by statistics of the volume"
    return None


def _reserve(needed: float, free: float) -> None:
    if needed > free:
        raise MemoryError(f"a layer needs {needed / 2**30:.2f} GiB, {max(free, 0) / 2**30:.2f} GiB are free")


def _free_memory(device: torch.device) -> float:
    """Free memory of a device in bytes, infinite where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf
