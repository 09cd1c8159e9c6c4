# SPDX-License-Identifier: Apache-2.0
"""Data lists, checking readers, and class weights."""

from __future__ import annotations

from monai_attn.data.checking import median_frequency_weights
from monai_attn.data.datalist import case_name, case_names, cases, common_root, find_images, locate, training_cases
from monai_attn.data.reader import CaseDataset, CheckingReader, DistributedRandomSampler, check_file

__all__ = [
    "CaseDataset", "CheckingReader", "DistributedRandomSampler", "case_name", "case_names", "cases", "check_file",
    "common_root", "find_images", "locate", "median_frequency_weights", "training_cases",
]  # fmt: skip
