# SPDX-License-Identifier: Apache-2.0
"""Inferers for networks that see less, or other dimensions, than the volume."""

from __future__ import annotations

from monai_attn.inferers.slices import SliceBatchInferer

__all__ = ["SliceBatchInferer"]
