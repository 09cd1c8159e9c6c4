# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAMES = sorted(path.parent.parent.name for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json"))


@pytest.fixture(scope="session", params=NAMES)
def trained(request: pytest.FixtureRequest, train_bundle: Callable[[str], Any]) -> Any:
    """Every bundle of the project, trained."""
    return train_bundle(request.param)
