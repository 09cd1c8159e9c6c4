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

import numpy as np
import torch
import torch.nn.functional as F
from demo import draw_summary, find_data
from matplotlib import colormaps
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from monai.bundle import run
from monai.data import MetaTensor
from monai.transforms import LoadImage

from monai_attn.data.datalist import case_name, cases
from monai_attn.run.workflow import read_bundle
from monai_attn.transforms import SobelEdges
from monai_attn.visualize import capture_attention, figures
from monai_attn.visualize.figures import CLASS_COLORS, panels
from monai_attn.visualize.figures.panels import cut, to_ras

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
    "output_dir": "$@output_dir + '/attention'",
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
        self.save("scores", structure_boxplot(scores, title="40 validation cases"))
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
        quick = {"validate#handlers#4#_disabled_": True, **({"overlap": 0} if bundle == EGCNN else {})}
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
        self.save("edges", edge_overlay(load(self.case["image"]), gates, edges, target, title=self.name))

    def scales(self, weights: str) -> None:
        """What the autofocus layers of a network chose."""
        config = read_bundle(EGCNN, ["train"], {"network_def": AFNET})
        network = config.get_parsed_content("network_def").eval()
        network.load_state_dict(torch.load(weights, weights_only=True))
        volume = config.get_parsed_content("validate#preprocessing")(self.case)
        with torch.no_grad(), capture_attention(network) as maps:
            network(volume["image"][None].as_tensor())
        choices = {path.removesuffix(".gate"): layer[0] for path, layer in maps.items()}
        title = f"{self.name}: weights of the scales"  # of voxels of 1 mm
        self.save("scales", scale_maps(volume["image"], choices, AFNET["dilations"], volume["label"], title=title))

    def region(self, results: dict[str, Path]) -> None:
        """The box in which one segmentation has most more voxels right than another."""
        truth = load(self.case["label"])
        worse, better = (load(results[name] / f"{self.name}_seg.nii.gz") for name in ("focusnet", "egcnn"))
        masks = {"truth": truth, "FocusNet, 6 epochs": worse, "EG-CNN": better}
        self.save("region", improved_region(load(self.case["image"]), masks, title=self.name, class_names=STRUCTURES))

    def places(self, bundle: Path, folder: str) -> dict[str, str]:
        """Where a run reads and writes."""
        return {"bundle_root": str(bundle), "dataset_dir": str(self.data), "output_dir": folder, "device": "cpu"}

    def save(self, name: str, figure: Figure) -> None:
        """Write a picture."""
        figures.save(figure, self.output / f"{name}.png")

    def copy(self, name: str, picture: Path) -> None:
        """Take a picture that a run has made."""
        (self.output / f"{name}.png").write_bytes(picture.read_bytes())


def edge_overlay(
    image: MetaTensor, gates: dict[str, Any], edges: torch.Tensor, target: torch.Tensor, *, title: str = ""
) -> Figure:
    """Draw where an EG-CNN looks for edges and where it finds them (Figs. 2 and 3 of Hatamizadeh 2020).

    Args:
        image: volume (C, *spatial), shown in the sagittal slice with the most of the target.
        gates: title to map (1, *spatial) of a gate, the paper's alpha of each resolution.
        edges: probability of an edge (1, *spatial).
        target: what they should be (1, *spatial), as ``SobelEdges`` makes it of the manual segmentation.
        title: title of the figure.
    """
    turned, layers = to_ras(image, {**gates, "predicted edges": edges, "target (Sobel)": target})
    shown, layers, view = cut(turned, layers, spatial_dim=0, by=["target (Sobel)"])
    figure, axes = panels.grid(len(layers) + 2, shown.shape[2] * view.aspect / shown.shape[1], title, columns=4)
    for axis in (axes[0], axes[-1]):
        panels.show_image(axis, shown, view)
    panels.show_letters(axes[0], view)
    axes[0].set_title("image", fontsize=8)
    for axis, (name, layer) in zip(axes[1:], layers.items()):
        panels.color_bar(axis, panels.show_map(axis, layer, view))
        axis.set_title(name, fontsize=8)
    found, wanted = ((layers[name] > 0.5).int() for name in ("predicted edges", "target (Sobel)"))
    panels.show_mask(axes[-1], found + 2 * wanted, [CLASS_COLORS[i] for i in (0, 4, 2)], view, alpha=0.7)
    axes[-1].set_title("predicted (orange), target (blue), both (green)", fontsize=6)
    return figure


def scale_maps(
    image: MetaTensor, weights: dict[str, torch.Tensor], scales: list[int], label: torch.Tensor, *, title: str = ""
) -> Figure:
    """Draw what the autofocus layers of a network chose (Fig. 4 of Qin 2018): a row for each layer.

    Args:
        image: volume (C, *spatial).
        weights: name of a layer to the weights of its scales (K, *spatial), which sum to one at each voxel.
        scales: the K scales in mm: how far the kernel reaches from its center, dilation times voxel size.
        label: label map (1, *spatial); the sagittal slice with the most foreground is shown.
        title: title of the figure.
    """
    shown, layers, view = cut(image, {**weights, "label": label}, spatial_dim=0, by=["label"])
    colors = colormaps["cividis"].resampled(len(scales))
    width, height = 2.4 * (len(scales) + 2), 2.4 * shown.shape[2] * view.aspect / shown.shape[1] + 0.45
    figure = panels.new_figure(width, height * len(weights) + 0.5, title)
    for axes, name in zip(figure.subplots(len(weights), len(scales) + 2, squeeze=False), weights):
        panels.show_image(axes[0], shown, view)
        panels.show_letters(axes[0], view)
        for axis, text in zip(axes, ["image", *(f"{scale} mm" for scale in scales), "largest weight"]):
            axis.set_title(f"{name}: {text}" if axis is axes[1] else text, fontsize=7)
        for axis, layer in zip(axes[1:], layers[name]):
            panels.color_bar(axis, panels.show_map(axis, layer[None], view))
        chosen = layers[name].argmax(dim=0, keepdim=True)
        norm = BoundaryNorm(np.arange(len(scales) + 1) - 0.5, len(scales))
        bar = panels.color_bar(axes[-1], panels.show_map(axes[-1], chosen, view, cmap=colors, norm=norm))
        bar.set_ticks(range(len(scales)), labels=scales)
        bar.set_label("mm", fontsize=6)
    return figure


def structure_boxplot(scores: dict[str, dict[str, list[float]]], *, metric: str = "Dice", title: str = "") -> Figure:
    """Draw box plots of the scores of all cases, by structure and method (Figs. 3 and 4 of the scSE paper).

    A box reaches from the first to the third quartile with the median in it, the whiskers to the last value within 1.5
    times its height, and what lies beyond is a point. A structure that a method has no number for has no box there.

    Args:
        scores: method to structure to the values of the cases; those that are NaN are left out.
        metric: what the values are.
        title: title of the figure.
    """
    structures = list(dict.fromkeys(name for values in scores.values() for name in values))
    figure = panels.new_figure(min(max(3.5, 1.5 + 0.28 * len(structures) * len(scores)), 16), 3.4, title)
    axis, colors = figure.subplots(), panels.class_colors(len(scores))
    group, thin = 0.8, {"linewidth": 0.6}  # a group takes so much of the distance between two structures
    width = group / len(scores)
    for number, (color, values) in enumerate(zip(colors, scores.values())):
        columns = [np.asarray(values.get(structure, ()), dtype=float) for structure in structures]
        axis.boxplot(
            [column[~np.isnan(column)] for column in columns],
            positions=np.arange(len(structures)) + (number + 0.5) * width - group / 2,
            widths=0.85 * width,
            patch_artist=True,
            manage_ticks=False,
            boxprops={"facecolor": color, **thin},
            medianprops={"color": "black", "linewidth": 1.2},
            whiskerprops=thin,
            capprops=thin,
            flierprops={"marker": ".", "markersize": 3, "markerfacecolor": "black", "markeredgewidth": 0},
        )
    axis.set_xlim(-0.6, len(structures) - 0.4)
    axis.set_xticks(range(len(structures)), structures, fontsize=7)
    if len(structures) > 6 or max(map(len, structures)) > 14:
        axis.tick_params(axis="x", rotation=60)
    axis.tick_params(axis="y", labelsize=7)
    axis.set_ylabel(metric, fontsize=8)
    axis.grid(axis="y", linewidth=0.3)
    axis.set_axisbelow(True)
    panels.legend(figure, dict(zip(scores, colors)))
    return figure


def improved_region(image: MetaTensor, masks: dict[str, torch.Tensor], **options: Any) -> Figure:
    """Draw a box where one segmentation is most better than another (Figs. 5 and 6 of the scSE paper).

    It is a quarter of the volume long, wide and high, the one with the largest gain of right voxels; the figure shows
    the sagittal slice through its middle.

    Args:
        image: volume (C, *spatial).
        masks: title to label map (1, *spatial), of the truth, the worse and the better segmentation.
        options: those of ``figures.overlay``.
    """
    image, masks = to_ras(image, masks)
    truth, worse, better = (torch.as_tensor(mask) for mask in masks.values())
    size = [min(length, max(3, length // 4)) for length in truth.shape[1:]]
    gain = F.avg_pool3d(((better == truth).float() - (worse == truth).float())[None], size, stride=1)[0, 0]
    x, y, z = (int(start) for start in torch.unravel_index((gain * truth.numel()).round().argmax(), gain.shape))
    middle = slice(x + size[0] // 2, x + size[0] // 2 + 1)
    figure = figures.overlay(
        image[:, middle], {name: mask[:, middle] for name, mask in masks.items()}, spatial_dim=0, **options
    )
    for axis in figure.axes[1 : 1 + len(masks)]:
        axis.add_patch(Rectangle((y - 0.5, z - 0.5), *size[1:], fill=False, edgecolor="white", linewidth=1.2))
    return figure


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
