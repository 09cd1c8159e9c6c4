# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate and apply a bundle: ``python docs/demo.py``.

It downloads data, then runs the commands that a user would type, and draws what the network attends to.
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from monai.apps import DecathlonDataset
from monai.transforms import LoadImage

from monai_attn import cli
from monai_attn.data.datalist import case_name, cases
from monai_attn.data.phantom import make_phantom
from monai_attn.visualize import figures, gate_title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUNDLE = "hippocampus_mri_scse_segmentation"
_STRUCTURES = ("anterior", "posterior")
_TASK = "Task04_Hippocampus"
PHANTOM_CASES = 60
_CONNECTION_SECONDS = 20


def find_data(root: Path) -> Path:
    """Return the folder of the hippocampus data, downloaded if absent.

    In ``root``, which is ``$MONAI_DATA_DIRECTORY``, it is ``hippocampus`` with its ``dataset.json``, else
    ``Task04_Hippocampus`` (27 MB to download), else, without a network, a phantom.
    """
    prepared = root / "hippocampus"
    if (prepared / "dataset.json").is_file():
        return prepared
    root.mkdir(parents=True, exist_ok=True)
    present = (root / _TASK / "dataset.json").is_file()
    socket.setdefaulttimeout(_CONNECTION_SECONDS)
    try:
        DecathlonDataset(str(root), _TASK, "training", transform=(), download=not present, cache_num=0)
        return root / _TASK
    except Exception as error:  # MONAI's download wraps what went wrong into a bare Exception
        print(f"Could not download {_TASK}: {str(error).splitlines()[0]}")
    phantom = root / "phantom_hippocampus"
    print(
        "NO REAL DATA: this demo uses synthetic images; its scores are not meaningful.\n"
        f"Put the data set into {prepared} or connect to the network and run it again."
    )
    if not (phantom / "dataset.json").is_file():
        make_phantom(BUNDLE, phantom, cases=PHANTOM_CASES)
    return phantom


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", default="demo", help="folder for weights, tables and pictures (%(default)s)")
    parser.add_argument("--epochs", help="train for another number of epochs than the bundle's")
    arguments = parser.parse_args()
    data = find_data(Path(os.environ.get("MONAI_DATA_DIRECTORY", "data")))
    case, out = cases(data, "validation")[0], arguments.out
    segmentation, weights = f"{out}/segmentation", ["--checkpoint", f"{out}/model.pt"]
    epochs = ["--epochs", arguments.epochs] if arguments.epochs else []
    for words in (
        ["train", BUNDLE, "-d", str(data), "-o", out, *epochs],
        ["evaluate", BUNDLE, "-d", str(data), "-o", out, *weights],
        ["segment", BUNDLE, case["image"], "-o", segmentation, "--attention", "--overwrite", "True", *weights],
    ):
        print(f"\nmonai-attn {shlex.join(words)}", flush=True)
        if code := cli.main(words):
            sys.exit(code)
    figures.save(draw_summary(case, Path(segmentation)), f"{out}/summary.png")
    print(f"\nsummary.png in {out} shows what the network sees and attends to")


def draw_summary(case: dict[str, Any], results: Path) -> Figure:
    """Draw image, label, prediction and attention map of a case.

    ``results`` is the folder of its segmentation and attention maps.
    """
    name = case_name(case["image"])
    load = LoadImage(image_only=True, ensure_channel_first=True)
    masks = {"manual segmentation": load(case["label"]), "prediction": load(results / f"{name}_seg.nii.gz")}
    start, ending = f"{name}_attention_", ".nii.gz"
    files = {file.name.removeprefix(start).removesuffix(ending): file for file in results.glob(f"{start}*{ending}")}
    gate, attention = most_varied({path: load(file) for path, file in files.items()})
    heatmaps = {f"attention: {gate_title(gate)}": attention}
    return figures.overlay(  # sagittal slices, which the network works on, show the hippocampus at its longest
        load(case["image"]), masks, heatmaps=heatmaps, spatial_dim=0, title=name, class_names=_STRUCTURES
    )


def most_varied(maps: dict[str, torch.Tensor]) -> tuple[str, torch.Tensor]:
    """Choose the attention map with the largest standard deviation, which shows most."""
    return max(sorted(maps.items()), key=lambda item: float(item[1].std()))


if __name__ == "__main__":
    main()
