# SPDX-License-Identifier: Apache-2.0
"""Attention maps as files in the image's own space, to be laid over it in any viewer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.config import PathLike
from monai.transforms import Compose, Invertd, InvertibleTransform, Transform
from torch import nn

from monai_attn.transforms import AsLabelMapd, SafeSaveImaged
from monai_attn.visualize.maps import GateMaps

__all__ = ["attention_key", "save_attention"]


def attention_key(name: str) -> str:
    """The key under which :class:`monai_attn.handlers.AttentionMaps` gives the map of a gate."""
    return f"attention_{name}"


def save_attention(
    network: nn.Module,
    transform: InvertibleTransform,
    output_dir: PathLike,
    *,
    output_ext: str = ".nii.gz",
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
        origin: tells of an image file what makes its maps.

    Returns:
        the transforms, with one :class:`monai_attn.transforms.SafeSaveImaged` for each map.

    Raises:
        ConfigError: if the network has no spatial gate.

    Example:
        ``Compose([..., save_attention(network, preprocessing, "out")])``
    """
    maps = GateMaps(network)
    steps: list[Transform] = []
    for name in maps.names:
        key, is_scale, in_grey = attention_key(name), name in maps.layers, output_ext == ".png"
        steps += [
            Invertd(key, transform, "image", nearest_interp=is_scale, to_tensor=True),
            AsLabelMapd(key, dtype=torch.uint8 if in_grey and is_scale else torch.float32),
            SafeSaveImaged(
                key,
                output_dir,
                output_postfix=key,
                output_ext=output_ext,
                output_dtype=torch.uint8 if in_grey else torch.float32,
                scale=255 if in_grey and not is_scale else None,
                origin=origin,
            ),
        ]
    return Compose(steps)
