# SPDX-License-Identifier: Apache-2.0
"""Reading of image files, with checks."""

from __future__ import annotations

from monai_attn.data.reader.checking import CheckingReader, check_file
from monai_attn.data.reader.dataset import CaseDataset, failure_in
from monai_attn.data.reader.nifti import describe_affine, read_header

__all__ = ["CaseDataset", "CheckingReader", "check_file", "describe_affine", "failure_in", "read_header"]
