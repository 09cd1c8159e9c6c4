# SPDX-License-Identifier: Apache-2.0
"""Every bundle of the project, trained for a moment on its phantom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from monai.bundle import run

from monai_attn.data.phantom import PHANTOMS, make_phantom

BUNDLES = sorted(path.parent.parent for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json"))


class TrainedBundle(NamedTuple):
    root: Path
    data: Path
    output: Path

    def config(self, *names: str) -> list[str]:
        return [str(self.root / "configs" / f"{name}.json") for name in names]

    def entries(self, name: str) -> dict[str, Any]:
        return json.loads((self.root / "configs" / f"{name}.json").read_text())

    def small(self, name: str) -> dict[str, Any]:
        """As little work as shows that everything goes together."""
        entries = self.entries(name)
        limits = {"network_def#features": 4}
        if name == "train":
            limits |= {"epochs": 1, "val_interval": 1}
            limits |= {key: 2 for key in ("slices_per_volume", "slices_per_image") if key in entries}
        if "padded_size" in entries:
            limits["padded_size"] = [min(size, 96) for size in entries["padded_size"]]
        return limits

    def run(self, *names: str, **overrides: Any) -> None:
        common = {"bundle_root": str(self.root), "dataset_dir": str(self.data), "device": "cpu"}
        run(config_file=self.config(*names), **{**common, **self.small(names[0]), **overrides})

    @property
    def suffix(self) -> str:
        return PHANTOMS[self.root.name].suffix

    @property
    def weights(self) -> Path:
        return self.output / "model.pt"


@pytest.fixture(scope="session", params=BUNDLES, ids=lambda path: path.name)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedBundle:
    folder = tmp_path_factory.mktemp(request.param.name)
    data = make_phantom(request.param.name, folder / "data", cases=6)
    bundle = TrainedBundle(request.param, data, folder / "out")
    bundle.run("train", output_dir=str(bundle.output), ckpt_dir=str(bundle.output))
    return bundle
