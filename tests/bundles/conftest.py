# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ..conftest import BUNDLES

NAMES = [root.name for root in BUNDLES]
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
    return train_bundle(request.param)


def parts(config: Any) -> Iterator[Any]:
    """All values of a configuration, at any depth."""
    yield config
    if isinstance(config, (dict, list)):
        for part in config.values() if isinstance(config, dict) else config:
            yield from parts(part)


def strings(config: Any) -> list[str]:
    return [part for part in parts(config) if isinstance(part, str)]


def components(config: Any) -> list[dict[str, Any]]:
    return [part for part in parts(config) if isinstance(part, dict) and "_target_" in part]
