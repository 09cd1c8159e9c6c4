# SPDX-License-Identifier: Apache-2.0
"""Every bundle of the project, trained for a moment on its phantom."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
from monai.bundle import run

from monai_attn.data.phantom import make_phantom

BUNDLES = sorted(path.parent.parent for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json"))


class TrainedBundle(NamedTuple):
    root: Path
    data: Path
    output: Path

    def config(self, *names: str) -> list[str]:
        return [str(self.root / "configs" / f"{name}.json") for name in names]

    def run(self, *names: str, **overrides: Any) -> None:
        common = {"bundle_root": str(self.root), "dataset_dir": str(self.data), "device": "cpu", **NETWORK}
        if names == ("train",):
            common |= TRAINING
        run(config_file=self.config(*names), **{**common, **overrides})

    @property
    def network(self) -> dict[str, Any]:
        return NETWORK

    @property
    def weights(self) -> Path:
        return self.output / "model.pt"


# as little as shows that everything works together
NETWORK = {"network_def#features": 4}
TRAINING = {"epochs": 1, "val_interval": 1}


@pytest.fixture(scope="session", params=BUNDLES, ids=lambda path: path.name)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedBundle:
    folder = tmp_path_factory.mktemp(request.param.name)
    data = make_phantom(request.param.name, folder / "data", cases=6)
    bundle = TrainedBundle(request.param, data, folder / "out")
    bundle.run("train", output_dir=str(bundle.output), ckpt_dir=str(bundle.output))
    return bundle
