# SPDX-License-Identifier: Apache-2.0
"""Train, evaluate and apply a bundle: ``python -m monai_attn.demo``.

It downloads data, then runs the commands that a user would type, and draws what the network attends to.
"""

from __future__ import annotations

import argparse
import os
import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai.apps import DecathlonDataset
from monai.bundle import run
from monai.transforms import LoadImage

from monai_attn.data.datalist import case_name, cases
from monai_attn.data.phantom import make_phantom
from monai_attn.visualize import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_summary", "find_data", "main"]

BUNDLE = "hippocampus_mri_scse_segmentation"
_STRUCTURES = ("anterior", "posterior")
_TASK = "Task04_Hippocampus"
PHANTOM_CASES = 60
_CONNECTION_SECONDS = 20


def find_data(root: Path) -> Path:
    """Return the folder of the hippocampus data, downloaded if absent.

    In ``root``, which is ``$MONAI_DATA_DIRECTORY``, it is ``hippocampus`` with its ``dataset.json``, else
    ``Task04_Hippocampus`` (27 MB to download), else, without a network, a phantom.

    Example:
        ``find_data(Path("data"))``
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
        "NO REAL DATA: this demo runs on a made-up phantom, whose numbers mean nothing for patients.\n"
        f"Put the data set into {prepared} or connect to the network and run it again."
    )
    if not (phantom / "dataset.json").is_file():
        make_phantom(BUNDLE, phantom, cases=PHANTOM_CASES)
    return phantom


def main() -> None:
    """Run the demo.

    Example:
        ``python -m monai_attn.demo --output_dir demo``
    """
    parser = argparse.ArgumentParser(prog="python -m monai_attn.demo", description=__doc__)
    parser.add_argument("--bundle_root", default=f"bundles/{BUNDLE}", help="folder of the bundle (%(default)s)")
    parser.add_argument("--output_dir", default="demo", help="folder for weights, tables and pictures (%(default)s)")
    parser.add_argument("--epochs", type=int, help="train for another number of epochs than the bundle's")
    arguments = parser.parse_args()
    bundle, output = Path(arguments.bundle_root), Path(arguments.output_dir)
    data = find_data(Path(os.environ.get("MONAI_DATA_DIRECTORY", "data")))
    case = cases(data, "validation")[0]
    weights = str(output / "model.pt")

    begun = time.perf_counter()
    common = {"bundle_root": str(bundle), "dataset_dir": str(data)}
    training = {**common, "output_dir": str(output), "ckpt_dir": str(output)}
    inference = {**common, "output_dir": str(output / "segmentation"), "input": case["image"], "checkpoint": weights}
    inference |= {"save_attention": True, "overwrite": True}  # what an earlier demo has left
    _run("1/3 train", bundle, ["train"], {**training, **({"epochs": arguments.epochs} if arguments.epochs else {})})
    _run("2/3 evaluate", bundle, ["train", "evaluate"], training)
    _run("3/3 segment a case", bundle, ["inference"], inference)
    figures.save(draw_summary(case, output / "segmentation"), output / "summary.png")
    print(
        f"\nDone in {time.perf_counter() - begun:.0f} s. In {output}: summary.png (what the network sees "
        "and attends to), *_overlay.png (results), val_mean_dice_raw.csv (Dice of every case), segmentation/."
    )


def _run(title: str, bundle: Path, configs: list[str], overrides: dict[str, Any]) -> None:
    files = [str(bundle / "configs" / f"{name}.json") for name in configs]
    shown = files[0] if len(files) == 1 else f'"{files}"'
    options = [f"--{key} {shlex.quote(str(value))}" for key, value in overrides.items()]
    print(f"\n{title}:\n{' '.join(['python -m monai.bundle run --config_file', shown, *options])}", flush=True)
    run(config_file=files, **overrides)


def draw_summary(case: dict[str, Any], results: Path) -> Figure:
    """Draw image, label, prediction and attention map of a case.

    ``results`` is the folder of its segmentation and attention maps.

    Example:
        ``figures.save(draw_summary(case, Path("demo/segmentation")), "summary.png")``
    """
    name = case_name(case["image"])
    load = LoadImage(image_only=True, ensure_channel_first=True)
    masks = {"manual segmentation": load(case["label"]), "prediction": load(results / f"{name}_seg.nii.gz")}
    heatmaps = {"attention, 2nd encoder": load(results / f"{name}_attention_encoder_se.1.spatial.nii.gz")}
    return figures.overlay(  # sagittal slices, which the network works on, show the hippocampus at its longest
        load(case["image"]), masks, heatmaps=heatmaps, spatial_dim=0, title=name, class_names=_STRUCTURES
    )


if __name__ == "__main__":
    main()
