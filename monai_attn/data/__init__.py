# SPDX-License-Identifier: Apache-2.0
"""Data lists and look-alike data."""

from __future__ import annotations

from monai_attn.data.datalist import case_name, case_names, cases, common_root, find_images, locate, pair_by_name

__all__ = ["case_name", "case_names", "cases", "common_root", "find_images", "locate", "pair_by_name"]
