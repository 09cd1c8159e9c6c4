# SPDX-License-Identifier: Apache-2.0
"""Inferers for slices, tiles with a halo, and bf16.

For a network trained on random crops use MONAI's ``SlidingWindowInferer`` with the crop as its window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer, SimpleInferer
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple, ensure_tuple_rep
from torch import nn

__all__ = ["BF16Inferer", "HaloInferer", "SliceBatchInferer"]


class BF16Inferer(Inferer):
    """Inferer that runs the network in bf16 on a CPU.

    It is for inference and training. On CPUs with Intel AMX most convolutions take a half to a quarter of the time, but
    autofocus layers with large dilations take longer. With AVX512-BF16, such as AMD's since Zen 4, they take a half to
    three quarters. Outputs are converted to float32, so the loss is float32; outputs of :class:`SliceBatchInferer` and
    :class:`HaloInferer` stay bf16, with half of the memory. On a GPU this has no effect: use ``amp`` of the engine.

    Args:
        inferer: the inferer that calls the network; by default MONAI's ``SimpleInferer``.
        enabled: whether to use bf16 on a CPU; by default if it has AMX or AVX512-BF16.

    Example:
        >>> BF16Inferer(enabled=True)(torch.rand(1, 1, 8, 8), torch.nn.Conv2d(1, 3, 1)).dtype
        torch.float32
    """

    def __init__(self, inferer: Inferer | None = None, enabled: bool | None = None) -> None:
        super().__init__()
        if enabled not in (True, False, None):
            raise ValueError(f"enabled must be True, False or None, got {enabled!r}.")
        self.inferer = inferer or SimpleInferer()
        cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        self.enabled = bool(cpu.get("amx_bf16") or cpu.get("avx512_bf16")) if enabled is None else enabled

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Map a batch to what the inferer makes of it with the network."""
        if not self.enabled or inputs.device.type != "cpu":
            return self.inferer(inputs, network, *args, **kwargs)

        def as_float(batch: torch.Tensor, *args: Any, **kwargs: Any) -> Any:  # windows are added up in float32
            outputs = network(batch, *args, **kwargs)
            return convert_to_tensor(outputs, dtype=torch.float32, track_meta=isinstance(batch, MetaTensor))

        tiles = isinstance(self.inferer, (HaloInferer, SliceBatchInferer))
        with torch.autocast("cpu", torch.bfloat16):
            return self.inferer(inputs, network if tiles else as_float, *args, **kwargs)


class SliceBatchInferer(Inferer):
    """Slice-by-slice inferer that runs a 2D network over volumes.

    Whole slices go through the network in batches, whereas MONAI's ``SliceInferer`` slides a window of a given size
    over each slice and pads smaller ones. Besides the output only one batch is in memory.

    Args:
        spatial_dim: the spatial axis to cut along, 0, 1 or 2, as in training.
        batch_size: number of slices in one call of the network.

    Raises:
        ValueError: if ``batch_size`` is below 1 or ``spatial_dim`` no axis, or if the input is not a batch of volumes.

    Example:
        >>> SliceBatchInferer(spatial_dim=2)(torch.rand(1, 1, 8, 9, 10), torch.nn.Conv2d(1, 3, 1)).shape
        torch.Size([1, 3, 8, 9, 10])
    """

    def __init__(self, spatial_dim: int = 0, batch_size: int = 16) -> None:
        super().__init__()
        if batch_size < 1 or spatial_dim not in (0, 1, 2):
            raise ValueError(f"expected batch_size >= 1 and spatial_dim 0, 1 or 2, got {batch_size}, {spatial_dim}.")
        self.axis = spatial_dim + 2
        self.batch_size = batch_size

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Map volumes (B, C, H, W, D) to the network's output (B, C', H, W, D)."""
        if inputs.ndim != 5:
            raise ValueError(f"inputs must be volumes (B, C, H, W, D), got a tensor of shape {tuple(inputs.shape)}.")
        volumes = inputs.as_subclass(torch.Tensor)
        axis, depth = self.axis - 1, volumes.shape[self.axis]  # of one volume
        output = torch.empty(0)
        for index, start in product(range(len(volumes)), range(0, depth, self.batch_size)):
            number = min(self.batch_size, depth - start)
            slices = volumes[index].narrow(axis, start, number).movedim(axis, 0)
            result = network(slices.contiguous(memory_format=torch.channels_last), *args, **kwargs)
            if index == start == 0:  # the only tensor of the output's size
                output = result.new_empty(len(volumes), result.shape[1], *volumes.shape[2:])
            output[index].narrow(axis, start, number).copy_(result.movedim(0, axis))
        return convert_to_dst_type(output, inputs, dtype=output.dtype)[0]


class HaloInferer(Inferer):
    """Inferer that runs a network over tiles with a halo.

    Every tile is read with ``halo`` voxels more at every side, within the volume; the outputs are tiled without
    blending. If the network crops its output by c voxels (its attribute ``crop``), the volume is first padded with c
    zeros: with ``padding="official"``, ``tile=47`` and ``halo=14`` this is how the authors of the autofocus layer
    predict (Qin 2018, https://arxiv.org/abs/1805.08403, ``test.py`` of their code), who begin at the corner of the
    brain, and pad the last tiles with zeros, where ours read more of the volume.

    With the network's ``receptive_radius`` as halo, the result equals that on the whole volume, if normalization has
    fixed statistics (batch normalization, or none).

    Args:
        tile: side of the tiles that are written, one number or one for each dimension.
        halo: voxels read around a tile; by default the network's ``receptive_radius``.

    Raises:
        ValueError: if ``tile`` is below 1, ``halo`` is missing or smaller than the network's crop, or the network is in
            training mode.

    Example:
        >>> from monai_attn.nets import AFNet
        >>> net = AFNet(3, 1, 2, n_autofocus=0, padding="official", channels=(4, 4, 6, 6)).eval()
        >>> HaloInferer(tile=8)(torch.rand(1, 1, 20, 12, 10), net).shape
        torch.Size([1, 2, 20, 12, 10])
    """

    def __init__(self, tile: Sequence[int] | int, halo: Sequence[int] | int | None = None) -> None:
        super().__init__()
        if min(ensure_tuple(tile)) < 1:
            raise ValueError(f"tile must be at least 1, got {tile}.")
        self.tile = tile
        self.halo = halo

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Map a volume (B, C, *spatial) to the network's output (B, C', *spatial)."""
        size = inputs.shape[2:]
        halo, crop = self._margins(network, len(size))
        tile = ensure_tuple_rep(self.tile, len(size))
        padded = F.pad(inputs.as_subclass(torch.Tensor), [crop] * (2 * len(size)))
        output = torch.empty(0)
        for start in product(*map(range, [0] * len(size), size, tile)):
            stop = [min(s + t, n) for s, t, n in zip(start, tile, size)]
            # the last window begins earlier, to be as large as the others
            first = [max(min(s, n - t) + crop - h, 0) for s, t, n, h in zip(start, tile, size, halo)]
            last = [s + crop + h for s, h in zip(stop, halo)]  # a slice ends with the volume
            result = network(padded[_box(first, last)], *args, **kwargs)
            if not any(start):
                output = result.new_empty([*result.shape[:2], *size])
            # output voxel i of the network stands at voxel first + i of the volume
            inside = _box([s - f for s, f in zip(start, first)], [s - f for s, f in zip(stop, first)])
            output[_box(start, stop)] = result[inside]
        return convert_to_dst_type(output, inputs, dtype=output.dtype)[0]

    def _margins(self, network: Any, dims: int) -> tuple[tuple[int, ...], int]:
        """Return the halo in each dimension, and the network's crop."""
        if isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        if getattr(network, "training", False):
            raise ValueError("the network is in training mode, where tiles and whole differ; call its eval() first.")
        crop = getattr(network, "crop", 0)
        halo = getattr(network, "receptive_radius", None) if self.halo is None else self.halo
        if halo is None:
            raise ValueError(f"halo must be given, as {type(network).__name__} has no receptive_radius.")
        if min(ensure_tuple(halo)) < crop:
            raise ValueError(f"halo must be at least {crop}, which the network takes off every side, got {halo}.")
        return ensure_tuple_rep(halo, dims), crop


def _box(first: Sequence[int], last: Sequence[int]) -> tuple[slice, ...]:
    return (slice(None), slice(None), *map(slice, first, last))
