# SPDX-License-Identifier: Apache-2.0
"""Convert the output of a network to files."""

from __future__ import annotations

from monai_attn.transforms.output.label_map import AsLabelMapd, InvertArgmaxd
from monai_attn.transforms.output.save import SafeSaveImage, SafeSaveImaged, origin_of

__all__ = ["AsLabelMapd", "InvertArgmaxd", "SafeSaveImage", "SafeSaveImaged", "origin_of"]
