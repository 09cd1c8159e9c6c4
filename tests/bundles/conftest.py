# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NAMES = sorted(path.parent.parent.name for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json"))
# volumes by slices, pictures, volumes of one and of two outputs by windows
EACH_KIND = {
    "hippocampus_mri_scse_segmentation",
    "skin_lesion_focusnet_segmentation",
    "pelvic_ct_autofocus_segmentation",
    "hippocampus_mri_egcnn_segmentation",
}
# for tests that take long: one bundle of each kind always, the others with the slow tests
mostly_slow = pytest.mark.parametrize(
    "trained",
    [pytest.param(name, marks=[] if name in EACH_KIND else pytest.mark.slow) for name in NAMES],
    indirect=True,
)


@pytest.fixture(scope="session", params=NAMES)
def trained(request: pytest.FixtureRequest, train_bundle: Callable[[str], Any]) -> Any:
    """Every bundle of the project, trained."""
    return train_bundle(request.param)
