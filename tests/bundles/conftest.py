# SPDX-License-Identifier: Apache-2.0
"""Every bundle of the project, trained for a moment on its phantom."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from monai.bundle import ConfigParser, run

from monai_attn.data.phantom import make_phantom

BUNDLES = sorted(path.parent.parent for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json"))


SMALL = {
    "slices_per_volume": 2,
    "slices_per_image": 2,
    "images_per_epoch": 8,
    "image_size": [40, 48],
    "crop_size": [24, 24, 24],
    "loss_margin": 4,
    "overlap": 0.1,
    "batch_size": 2,
}
NARROW: dict[str, dict[str, Any]] = {
    "FocusNet": {"channels": [8, 16, 16]},
    "AFNet": {"channels": [4, 4, 4, 4, 4, 4, 6, 6], "n_autofocus": 1, "dilations": [1, 3]},
    "EGCNN": {
        "main_stream": {
            "_target_": "SegResNet",
            "spatial_dims": 3,
            "in_channels": "@in_channels",
            "out_channels": "@out_channels",
            "init_filters": 8,
            "blocks_down": [1, 1, 1],
            "blocks_up": [1, 1],
        }
    },
}


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
        limits = {key: value for key, value in SMALL.items() if key in entries}
        limits |= {f"network_def#{key}": value for key, value in self.narrow.items()}
        if name == "train":
            limits |= {"epochs": 1, "val_interval": 1}
        if "padded_size" in entries:
            limits["padded_size"] = [min(size, 96) for size in entries["padded_size"]]
        return limits

    @property
    def narrow(self) -> dict[str, Any]:
        """Arguments that make the bundle's network small."""
        return NARROW.get(self.entries("train")["network_def"]["_target_"].split(".")[-1], {"features": 4})

    def run(self, *names: str, **overrides: Any) -> None:
        common = {"bundle_root": str(self.root), "dataset_dir": str(self.data), "device": "cpu"}
        run(config_file=self.config(*names), **{**common, **self.small(names[0]), **overrides})

    def parsed(self, config: str, **overrides: Any) -> ConfigParser:
        """A configuration to take parts from, small and on the phantom."""
        folders = {"dataset_dir": str(self.data), "ckpt_dir": str(self.output), "output_dir": str(self.output)}
        parser = ConfigParser()
        parser.read_config(self.config(config))
        parser.update({**folders, "device": "cpu", **self.small(config), **overrides})
        return parser

    def small_copy(self, folder: Path) -> TrainedBundle:
        """The bundle with only the numbers changed that make it small, for those who give no overrides."""
        shutil.copytree(self.root, folder, ignore=shutil.ignore_patterns("models", "eval"))
        for name in ("train", "inference"):
            entries = self.entries(name)
            for key, value in self.small(name).items():
                if key not in ("epochs", "val_interval"):  # not the size of anything
                    *parents, last = key.split("#")
                    reduce(getitem, parents, entries)[last] = value
            (folder / "configs" / f"{name}.json").write_text(json.dumps(entries))
        return self._replace(root=folder, output=folder / "models")

    @property
    def suffix(self) -> str:
        """The ending of the results."""
        return self.entries("inference").get("displayable_configs", {}).get("result_extension", ".nii.gz")

    @property
    def metric(self) -> str:
        """The metric that the bundle is judged by."""
        return next(iter(self.entries("train")["validate"]["key_metric"]))

    @property
    def weights(self) -> Path:
        return self.output / "model.pt"


@pytest.fixture(scope="session")
def bundle_on_phantom(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TrainedBundle]:
    """Makes the phantom of a bundle, to train on, when it is first asked for."""

    @cache
    def make(name: str) -> TrainedBundle:
        folder = tmp_path_factory.mktemp(name)
        root = next(root for root in BUNDLES if root.name == name)
        return TrainedBundle(root, make_phantom(name, folder / "data", cases=6), folder / "out")

    return make


@pytest.fixture(scope="session")
def train_bundle(bundle_on_phantom: Callable[[str], TrainedBundle]) -> Callable[[str], TrainedBundle]:
    """Trains a bundle on its phantom when it is first asked for."""

    @cache
    def train(name: str) -> TrainedBundle:
        bundle = bundle_on_phantom(name)
        bundle.run("train", output_dir=str(bundle.output), ckpt_dir=str(bundle.output))
        return bundle

    return train


@pytest.fixture(scope="session", params=[root.name for root in BUNDLES])
def trained(request: pytest.FixtureRequest, train_bundle: Callable[[str], TrainedBundle]) -> TrainedBundle:
    return train_bundle(request.param)
