# SPDX-License-Identifier: Apache-2.0
"""Data lists, readers, class weights and look-alike data."""

from __future__ import annotations

from monai_attn.data.class_weights import median_frequency_weights
from monai_attn.data.datalist import (
    case_name,
    case_names,
    cases,
    common_root,
    find_images,
    locate,
    pair_by_name,
    training_cases,
)
from monai_attn.data.dataset import CaseDataset
from monai_attn.data.files import check_file
from monai_attn.data.reader import CheckingReader

__all__ = [
    "CaseDataset",
    "CheckingReader",
    "case_name",
    "case_names",
    "cases",
    "check_file",
    "common_root",
    "find_images",
    "locate",
    "median_frequency_weights",
    "pair_by_name",
    "training_cases",
]
