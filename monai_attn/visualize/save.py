# SPDX-License-Identifier: Apache-2.0
"""Attention maps as files in the image's own space, to be laid over it in any viewer."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from monai.config import PathLike
from monai.transforms import Compose, Invertd, InvertibleTransform, Transform
from torch import nn

from monai_attn.transforms.label_map import AsLabelMapd
from monai_attn.transforms.save import SafeSaveImaged
from monai_attn.transforms.slabs import ResampleBySlabs
from monai_attn.visualize.maps import GateMaps

__all__ = ["attention_key", "save_attention"]


def attention_key(name: str) -> str:
    """The key under which :class:`monai_attn.handlers.AttentionMaps` gives the map of a gate."""
    return f"attention_{name}"


class _InvertBySlabs(Invertd):
    """``Invertd`` for a single image, in little memory if that is a volume."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        is_volume = data[self.keys[0]].ndim == 4
        with ResampleBySlabs() if is_volume else nullcontext():
            return super().__call__(data)


def save_attention(
    network: nn.Module,
    transform: InvertibleTransform,
    output_dir: PathLike,
    *,
    output_ext: str = ".nii.gz",
    source: str | Sequence[str] | None = None,
    origin: Callable[[str], str] | None = None,
) -> Compose:
    """Bring the maps of :class:`monai_attn.handlers.AttentionMaps` back to the grid of the image file and save them.

    Every map is a file ``<case>_attention_<path of the gate>``, so that it opens over the image in a viewer. In NIfTI
    the values are those of the map. In PNG 255 stands for 1, and the grey values of a map of scales are the scales.

    Args:
        network: the network whose maps they are.
        transform: the preprocessing, to be inverted.
        output_dir: folder for the files.
        output_ext: their ending.
        source: what is segmented, see :class:`monai_attn.transforms.SafeSaveImage`.
        origin: tells of an image file what makes its maps.

    Returns:
        the transforms, with one :class:`monai_attn.transforms.SafeSaveImaged` for each map.

    Raises:
        ConfigError: if the network has no spatial gate.

    Example:
        ``Compose([..., save_attention(network, preprocessing, "out", source="scans")])``
    """
    maps = GateMaps(network)
    steps: list[Transform] = []
    for name in maps.names:
        key, is_scale, in_grey = attention_key(name), name in maps.layers, output_ext == ".png"
        steps += [
            _InvertBySlabs(key, transform, "image", nearest_interp=is_scale, to_tensor=True),
            AsLabelMapd(key, dtype=torch.uint8 if in_grey and is_scale else torch.float32),
            SafeSaveImaged(
                key,
                output_dir,
                output_postfix=key,
                output_ext=output_ext,
                output_dtype=torch.uint8 if in_grey else torch.float32,
                scale=255 if in_grey and not is_scale else None,
                source=source,
                origin=origin,
            ),
        ]
    return Compose(steps)
