# SPDX-License-Identifier: Apache-2.0
"""Make every picture of docs/gallery.md, with the same bytes each time: ``python docs/gallery.py``.

It takes the hippocampus data that the demo takes, and the weights that come with the two bundles on them. What has no
weights is trained for a moment, on one thread, so it takes some ten minutes.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from monai.bundle import run
from monai.data import MetaTensor
from monai.transforms import LoadImage

from monai_attn.data.datalist import case_name, cases
from monai_attn.demo import draw_summary, find_data
from monai_attn.run.bundle import read_bundle
from monai_attn.transforms import SobelEdges
from monai_attn.visualize import capture_attention, figures

ROOT = Path(__file__).parents[1]
SCSE, EGCNN = (ROOT / f"bundles/hippocampus_mri_{method}_segmentation" for method in ("scse", "egcnn"))
STRUCTURES = ("anterior", "posterior")
FOCUSNET = {
    "_target_": "monai_attn.nets.FocusNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [8, 16, 24, 32, 40],
    "se_reduction": 4,
}
AFNET = {
    "_target_": "monai_attn.nets.AFNet",
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 3,
    "channels": [4, 4, 6, 6, 6, 6],
    "n_autofocus": 2,
    "dilations": [1, 2, 4, 6],
}
EVERY_EPOCH = {
    "_target_": "monai_attn.handlers.AttentionMapHandler",
    "network": "@network",
    "dataset": "@validate#dataset",
    "inferer": "@validate#inferer",
    "spatial_dim": "@slice_dim",
    "cases": 1,
    "save_dir": "$@output_dir + '/attention'",
}


class Gallery:
    """The pictures, and what they are made of.

    Args:
        data: the data set.
        output: folder for the pictures.
        work: folder for trainings and results.
    """

    def __init__(self, data: Path, output: Path, work: Path) -> None:
        self.data, self.output, self.work = data, output, work
        self.case = cases(data, "validation")[0]
        self.name = case_name(self.case["image"])

    def make(self) -> None:
        """Make all of them."""
        self.train(SCSE, "scse", epochs=7, slices_per_volume=1, val_interval=3)
        self.train(SCSE, "focusnet", epochs=6, slices_per_volume=2, val_interval=6, network_def=FOCUSNET)
        small = {"crop_size": [16, 32, 16], "lr": 0.005, "val_interval": 4}
        self.train(EGCNN, "afnet", epochs=4, network_def=AFNET, **small)
        weights = {name: str(self.work / name / "model.pt") for name in ("focusnet", "afnet")}
        results = {
            "scse": self.segment(SCSE, "scse"),
            "egcnn": self.segment(EGCNN, "egcnn"),
            "focusnet": self.segment(SCSE, "focusnet", checkpoint=weights["focusnet"], network_def=FOCUSNET),
        }
        self.save("hippocampus", draw_summary(self.case, results["scse"]))
        for name, folder in results.items():
            self.copy(f"attention_{name}", folder / f"{self.name}_attention.png")
        self.copy("curves", self.work / "scse" / "curves.png")
        self.save("epochs", figures.excitation_by_epoch(self.work / "scse" / "attention"))
        self.planes(results["egcnn"])
        self.edges(results["egcnn"])
        self.scales(weights["afnet"])
        scores = {name: self.evaluate(bundle, name) for name, bundle in {"scSE": SCSE, "EG-CNN": EGCNN}.items()}
        self.save("scores", figures.structure_boxplot(scores, title="40 validation cases"))
        self.region(results)

    def train(self, bundle: Path, name: str, **overrides: Any) -> None:
        """Train a network, and keep its attention after every epoch if it works on slices."""
        files = [str(bundle / "configs" / "train.json")]
        if bundle == SCSE:
            files.append(str(self.work / "every_epoch.json"))
            Path(files[-1]).write_text(json.dumps({"+train#handlers": [EVERY_EPOCH]}))
        folder = str(self.work / name)
        run(config_file=files, **self.places(bundle, folder), ckpt_dir=folder, **overrides)

    def segment(self, bundle: Path, name: str, **overrides: Any) -> Path:
        """Segment the case, with its attention maps, and return the folder of the results."""
        folder, config = self.work / f"{name}_results", str(bundle / "configs" / "inference.json")
        places = self.places(bundle, str(folder))
        run(config_file=config, **places, input=self.case["image"], save_attention=True, **overrides)
        return folder

    def evaluate(self, bundle: Path, name: str) -> dict[str, list[float]]:
        """The Dice scores of the validation cases by the weights that come with a bundle, by structure."""
        files = [str(bundle / "configs" / f"{config}.json") for config in ("train", "evaluate")]
        quick = {"validate#handlers#3#max_cases": 0, **({"overlap": 0} if bundle == EGCNN else {})}
        run(config_file=files, **self.places(bundle, str(self.work / f"{name}_scores")), **quick)
        with open(self.work / f"{name}_scores" / "val_mean_dice_raw.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {structure: [float(row[structure]) for row in rows] for structure in STRUCTURES}

    def planes(self, folder: Path) -> None:
        """A segmentation in three planes."""
        masks = {"truth": load(self.case["label"]), "prediction": load(folder / f"{self.name}_seg.nii.gz")}
        image = load(self.case["image"])
        self.save("planes", figures.three_planes(image, masks, title=self.name, class_names=STRUCTURES))

    def edges(self, folder: Path) -> None:
        """Where EG-CNN looks for edges, and finds them."""
        maps = {path.name: load(path) for path in sorted(folder.glob(f"{self.name}_attention_gates.*.nii.gz"))}
        gates = {f"alpha, {part} resolution": layer for part, layer in zip(("1/2", "full"), maps.values())}
        target = SobelEdges(num_classes=3)(load(self.case["label"]))
        edges = load(folder / f"{self.name}_attention_edges.nii.gz")
        figure = figures.edge_overlay(load(self.case["image"]), gates, edges, target, spatial_dim=0, title=self.name)
        self.save("edges", figure)

    def scales(self, weights: str) -> None:
        """What the autofocus layers of a network chose."""
        config = read_bundle(EGCNN, ["train"], {"network_def": AFNET})
        network = config.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(weights, weights_only=True))
        volume = config.get_parsed_content("validate#preprocessing")(self.case)
        with torch.no_grad(), capture_attention(network) as maps:
            network(volume["image"][None].as_tensor())
        choices = {path.removesuffix(".gate"): layer[0] for path, layer in maps.items()}
        scales = dict.fromkeys(choices, AFNET["dilations"])  # of voxels of 1 mm
        index = figures.best_slice(volume["label"], spatial_dim=0)
        title = f"{self.name}: weights of the scales"
        self.save(
            "scales", figures.scale_maps(volume["image"], choices, scales, index=index, spatial_dim=0, title=title)
        )

    def region(self, results: dict[str, Path]) -> None:
        """Where one segmentation is most better than another."""
        truth = load(self.case["label"])
        worse, better = (load(results[name] / f"{self.name}_seg.nii.gz") for name in ("focusnet", "egcnn"))
        box = figures.improved_region(truth, worse, better)
        masks = {"truth": truth, "FocusNet, 6 epochs": worse, "EG-CNN": better}
        figure = figures.overlay(
            load(self.case["image"]), masks, spatial_dim=0, title=self.name, class_names=STRUCTURES, box=box
        )
        self.save("region", figure)

    def places(self, bundle: Path, folder: str) -> dict[str, str]:
        """Where a run reads and writes."""
        return {"bundle_root": str(bundle), "dataset_dir": str(self.data), "output_dir": folder, "device": "cpu"}

    def save(self, name: str, figure: Any) -> None:
        """Write a picture."""
        figures.save(figure, self.output / f"{name}.png")

    def copy(self, name: str, picture: Path) -> None:
        """Take a picture that a run has made."""
        (self.output / f"{name}.png").write_bytes(picture.read_bytes())


def load(path: str | Path) -> MetaTensor:
    """An image with its channel first."""
    return LoadImage(image_only=True, ensure_channel_first=True)(path)


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output_dir", default=str(ROOT / "docs" / "images"), help="folder for them (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums come out in the same order
    data = find_data(Path(os.environ.get("MONAI_DATA_DIRECTORY", "data")))
    with tempfile.TemporaryDirectory() as work:
        Path(arguments.output_dir).mkdir(parents=True, exist_ok=True)
        Gallery(data, Path(arguments.output_dir), Path(work)).make()


if __name__ == "__main__":
    main()
