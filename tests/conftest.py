# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def same_random_numbers_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Finds a real data set by its name; the test is skipped where it is not."""

    def find(name: str) -> Path:
        root = os.environ.get("MONAI_DATA_DIRECTORY")
        if root is None or not (Path(root) / name).is_dir():
            pytest.skip(f"needs the folder {name} in $MONAI_DATA_DIRECTORY")
        return Path(root) / name

    return find
