# SPDX-License-Identifier: Apache-2.0
"""Make the pictures of docs/gallery.md, with the same bytes each time: ``python docs/gallery.py``.

``organs`` or ``hippocampus`` behind it makes only that part. Weights that come with a bundle are used; what has none is
trained here, on one thread: the organs for half an hour, small networks on the hippocampus for ten minutes. ``--work``
names a folder that keeps the trainings, and takes those that are there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from demo import draw_summary, find_data, most_varied
from matplotlib import colormaps
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from monai.bundle import run
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapLabelValue
from reproduce.reproduce import config_files, split_data
from reproduce.synthesize import main as synthesize

import monai_attn
from monai_attn.data.datalist import case_name, cases
from monai_attn.run.workflow import read_bundle
from monai_attn.transforms import SobelEdges
from monai_attn.visualize import capture_attention, figures, gate_title
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
LESION = "ISIC_0000002"  # the first of the cases to test
# organs of the CT, by their numbers in the classes of TotalSegmentator
ABDOMEN = {
    "liver": [5],
    "spleen": [1],
    "kidneys": [2, 3],
    "stomach": [6],
    "aorta": [52],
    "bowel": [18, 19, 20],
    "bladder": [21],
    "spine": [*range(25, 34)],
    "hips and femora": [*range(75, 79)],
    "muscles": [*range(80, 90)],
}


class Organ(NamedTuple):
    """A segmented image and its attention.

    Attributes:
        title: what is seen, and by which method.
        image: image (C, *spatial).
        layers: title to label map (1, *spatial), of the reference and the prediction.
        attention: title to the attention map that is shown.
        spatial_dim: slicing axis of a volume.
        class_names: names of the classes 1, 2, …
    """

    title: str
    image: MetaTensor
    layers: dict[str, torch.Tensor]
    attention: dict[str, torch.Tensor]
    spatial_dim: int
    class_names: tuple[str, ...]


class Organs:
    """Segmentations of several organs.

    Args:
        data: folder of the data sets.
        output: folder for the pictures.
        work: folder for trainings.
    """

    def __init__(self, data: Path, output: Path, work: Path) -> None:
        self.data, self.output, self.work = data, output, work

    def make(self) -> None:
        """Make all pictures."""
        hippocampus, brain, skin = self.hippocampus(), self.brain(), self.skin()
        figures.save(several_organs([hippocampus, brain, skin]), self.output / "organs.png")
        for name, organ in {"brain": brain, "abdomen": self.abdomen()}.items():
            figure = figures.three_planes(organ.image, organ.layers, title=organ.title, class_names=organ.class_names)
            figures.save(figure, self.output / f"{name}.png")

    def hippocampus(self) -> Organ:
        """The hippocampus, by the weights that come with its scSE bundle."""
        case = cases(find_data(self.data), "validation")[0]
        row: dict[str, Any] = {"bundle": SCSE, "overrides": {"structures": STRUCTURES, "slice_dim": 0}}
        return self.segment(row, case, SCSE / "models" / "model.pt", "hippocampus, scSE", "manual")

    def brain(self) -> Organ:
        """27 structures of a real brain, by a network that has only seen images made of label maps."""
        source, synthetic = self.data / "brain_aseg27", self.work / "synthetic"
        if not (synthetic / "dataset.json").is_file():
            synthesize(str(source), str(synthetic), step=2)
        row = evidence_row("scse", "U-Net + scSE")
        weights = self.train("brain", row, synthetic)
        # the bundle's own are those of a hippocampus
        row["overrides"] |= {"field_of_view": "$None", "spacing": [2.0, 2.0, 2.0]}
        case = {part: source / f"{part}s" / "vxm_test.nii.gz" for part in ("image", "label")}
        return self.segment(row, case, weights, "27 brain structures, scSE", "FreeSurfer")

    def skin(self) -> Organ:
        """A lesion of the skin, by the weights that come with the bundle."""
        source, bundle = self.data / "isic2017", ROOT / "bundles/skin_lesion_focusnet_segmentation"
        row, weights = {"bundle": bundle, "overrides": {}}, bundle / "models" / "model.pt"
        case = {"image": source / "images" / f"{LESION}.jpg", "label": source / "labels" / f"{LESION}.png"}
        return self.segment(row, case, weights, "skin lesion, FocusNet", "manual")

    def abdomen(self) -> Organ:
        """Organs of a CT, by a network that was trained on this very scan."""
        source, folder = self.data / "totalseg_demo", self.work / "abdomen"
        case = {part: str(source / f"{part}s" / "ct_full.nii.gz") for part in ("image", "label")}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "dataset.json").write_text(json.dumps({"training": [case], "validation": [case]}))
        classes = {number: i for i, numbers in enumerate(ABDOMEN.values(), 1) for number in numbers}
        options = {"structures": [*ABDOMEN], "label_map": {number: classes.get(number, 0) for number in range(1, 118)}}
        options |= {"network_def#features": 16, "padded_size": [192, 160, -1]}
        row = {"bundle": ROOT / "bundles/whole_body_ct_scse_segmentation", "overrides": options}
        fast = {"optimizer": "@adamw", "lr_scheduler": "@cosine", "lambda_dice": 1.0, "slices_per_volume": 160}
        weights = self.train("abdomen", row, folder, epochs=4, val_interval=4, **fast)
        return self.segment(row, case, weights, "CT of the abdomen, scSE", "reference")

    def train(self, name: str, row: dict[str, Any], data: Path, **overrides: Any) -> Path:
        """Return the weights of a training, which is run unless it has been."""
        folder, bundle = self.work / name, row["bundle"]
        if not (folder / "model.pt").is_file():
            if "split" in row:
                split_data(str(data), row["split"], 0, folder)
            places = {
                "bundle_root": str(bundle),
                "dataset_dir": str(folder),
                "output_dir": str(folder),
                "device": "cpu",
            }
            run(config_file=config_files(bundle), **places, ckpt_dir=str(folder), **{**row["overrides"], **overrides})
        return folder / "model.pt"

    def segment(self, row: dict[str, Any], case: dict[str, Any], weights: Path, title: str, reference: str) -> Organ:
        """Segment an image by a bundle; ``reference`` says who made its label."""
        entries = json.loads((row["bundle"] / "configs" / "inference.json").read_text(encoding="utf-8"))
        options = {key: value for key, value in row["overrides"].items() if key.partition("#")[0] in entries}
        names = tuple(options.get("structures", entries["structures"]))
        prediction, maps = monai_attn.segment(
            str(row["bundle"]), str(case["image"]), attention=True, checkpoint=weights, **options
        )
        label = load(case["label"])
        if mapping := row["overrides"].get("label_map"):
            label = MapLabelValue([*mapping], [*mapping.values()])(label)
        gate, attention = most_varied(maps)
        # the label map of a picture is without a channel
        layers = {reference: label.int(), "prediction": prediction.reshape(label.shape)}
        dim = row["overrides"].get("slice_dim", 2)
        return Organ(title, load(case["image"]), layers, {gate_title(gate): attention}, dim, names)


class Gallery:
    """The pictures of the hippocampus, and what they are made of.

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
    """Draw what the autofocus layers of a network chose (Fig. 1c of Qin 2018): a row for each layer.

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


def several_organs(organs: list[Organ]) -> Figure:
    """Draw image, reference, prediction and attention of each organ, side by side.

    Every attention map has a scale of colors of its own.

    Args:
        organs: what to draw, from the left to the right.
    """
    drawn = []
    for organ in organs:
        turned, layers = to_ras(organ.image, {**organ.layers, **organ.attention})
        image, layers, view = cut(turned, layers, spatial_dim=organ.spatial_dim, by=list(organ.layers))
        drawn.append((image, layers, view))
    widths = [image.shape[1] / (image.shape[2] * view.aspect) for image, _, view in drawn]
    figure = panels.new_figure(2.8 * sum(widths), 3.5, "")
    blocks = figure.subfigures(1, len(organs), wspace=0.06, width_ratios=widths)
    for block, organ, (image, layers, view) in zip(blocks, organs, drawn):
        block.suptitle(organ.title, fontsize=13)
        colors = panels.class_colors(len(organ.class_names))
        for axis, title in zip(block.subplots(2, 2).flat, ["image", *layers]):
            if title in organ.attention:
                panels.show_map(axis, layers[title], view)
            else:
                panels.show_image(axis, image, view)
                panels.show_mask(axis, layers.get(title, torch.zeros_like(image)), colors, view)
            axis.set_title("attention" if title in organ.attention else title, fontsize=11)
    return figure


def evidence_row(table: str, row: str) -> dict[str, Any]:
    """The bundle, split and overrides of a row of docs/reproduce/evidence.json."""
    tables = json.loads((ROOT / "docs" / "reproduce" / "evidence.json").read_text(encoding="utf-8"))["tables"]
    about = tables[table]
    overrides = next(each["overrides"] for each in about["rows"] if each["name"] == row)
    overrides = {**about["overrides"], **overrides}
    return {"bundle": ROOT / "bundles" / about["bundle"], "split": about["split"], "overrides": overrides}


def load(path: str | Path) -> MetaTensor:
    """An image with its channel first."""
    return LoadImage(image_only=True, ensure_channel_first=True)(path)


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="organs, hippocampus (default: both)")
    parser.add_argument("--output_dir", default=str(ROOT / "docs" / "images"), help="folder for them (%(default)s)")
    parser.add_argument("--work", help="folder to keep trainings in (default: a temporary one)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums come out in the same order
    root, output = Path(os.environ.get("MONAI_DATA_DIRECTORY", "data")), Path(arguments.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary).absolute()
        if "organs" in (arguments.parts or ["organs"]):
            Organs(root, output, work).make()
        if "hippocampus" in (arguments.parts or ["hippocampus"]):
            Gallery(find_data(root), output, work).make()


if __name__ == "__main__":
    main()
