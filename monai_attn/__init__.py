# SPDX-License-Identifier: Apache-2.0
"""Attention for medical image segmentation in MONAI: scSE, FocusNet, Autofocus and EG-CNN."""

from __future__ import annotations

__version__ = "0.1.0"
