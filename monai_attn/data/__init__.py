# SPDX-License-Identifier: Apache-2.0
"""Data lists and look-alike data."""

from __future__ import annotations

from monai_attn.data.datalist import case_name, cases, common_root, find_images, locate, pair_by_name
from monai_attn.data.dataset import CaseDataset

__all__ = ["CaseDataset", "case_name", "cases", "common_root", "find_images", "locate", "pair_by_name"]
