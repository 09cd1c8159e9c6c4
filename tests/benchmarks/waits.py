# SPDX-License-Identifier: Apache-2.0
"""What people wait for: one image, a folder of images, a CT, a training, and a check of a data set.

Every command runs in a process of its own, as from a shell: its imports and its end count, and its peak is that of the
process. The stock peer is the configuration of the bundle with MONAI's own classes in place of ours: same network,
windows and overlap, but no checks, pictures or report.
"""

import json
import os
import pydoc
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

# The rest, torch among it, is imported where it is used: what a process has spent on imports is measured.

BUNDLES = Path(__file__).parents[2] / "bundles"
QUICK_START = "hippocampus_mri_scse_segmentation"
CLOCKED = [
    ("network", "monai.inferers.SimpleInferer.__call__"),
    ("network", "monai.inferers.SlidingWindowInferer.__call__"),
    ("network", "monai_attn.inferers.SliceBatchInferer.__call__"),
    ("post-processing", "monai_attn.transforms.InvertArgmaxd.__call__"),
    ("masks", "monai_attn.transforms.SafeSaveImaged.__call__"),
    ("pictures", "monai_attn.handlers.OverlaySaver.__call__"),
    ("pictures", "monai_attn.visualize.figures.training_curves"),
    ("pictures", "monai_attn.visualize.figures.save"),
    ("loss", "monai.losses.DiceCELoss.forward"),
    ("backward", "torch.Tensor.backward"),
    ("optimizer", "torch.optim.AdamW.step"),
    ("checkpoint", "torch.save"),
    ("rest of the engine", "monai.engines.SupervisedEvaluator.run"),
]
STOCK = {
    "monai_attn.transforms.SafeLoadImaged": "LoadImaged",
    "monai_attn.transforms.SafeChannelFirstd": "EnsureChannelFirstd",
    "monai_attn.transforms.SafeSpacingd": "Spacingd",
}


class Clock(Counter):
    """Seconds by name; what is clocked within something else counts once."""

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        begun, known = time.perf_counter(), self.total()
        yield
        self[name] += time.perf_counter() - begun - (self.total() - known)

    def add(self, name: str, path: str) -> None:
        """Clock a function or method from now on."""
        owner, attribute = pydoc.locate(path.rpartition(".")[0]), path.rpartition(".")[2]
        way = getattr(owner, attribute)

        @wraps(way)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.running(name):
                return way(*args, **kwargs)

        setattr(owner, attribute, timed)


class Process(NamedTuple):
    """What a process took: seconds, MiB at its peak, and its seconds by name."""

    seconds: float
    peak: float
    split: dict[str, float]

    def __str__(self) -> str:
        parts = {**self.split, "start and end": self.seconds - sum(self.split.values())}
        return f"{self.seconds:.1f} s: " + ", ".join(f"{name} {part:.2f}" for name, part in parts.items())


def in_shell(function: Callable[..., None], *arguments: Any) -> Process:
    """Call a function of this module in a process with the usual settings of the C library."""
    code = f"import waits; waits.{function.__name__}(*{arguments!r})"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    options = {"cwd": Path(__file__).parent, "env": environment, "stdout": subprocess.PIPE, "text": True}
    begun = time.perf_counter()
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stderr=subprocess.DEVNULL, **options) as child:
        text = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    assert child.returncode == 0, f"{code} failed"
    return Process(seconds, usage.ru_maxrss / 1024, json.loads(text.splitlines()[-1]))


def ours(*command: str) -> None:
    """Run `monai-attn` in this process, and print its seconds by name."""
    clock = Clock()
    from monai_attn import cli
    from monai_attn.run import api

    with clock.running("imports"):
        api.import_monai()
    from monai.data import DataLoader

    def batches(loader: DataLoader, iterate: Callable = DataLoader.__iter__) -> Iterator[Any]:
        iterator = iterate(loader)

        def load() -> Any:
            with clock.running("data"):
                return next(iterator, None)

        return iter(load, None)

    DataLoader.__iter__ = batches
    for name, path in CLOCKED:
        clock.add(name, path)
    with clock.running("building"):
        code = cli.main(command)
    assert code == 0
    print(json.dumps(clock))


def stock(bundle: str, images: Sequence[str], output: str, checkpoint: str, options: dict[str, Any]) -> None:
    """Segment images by MONAI's own classes, and print the seconds of the imports."""
    clock = Clock()
    with clock.running("imports"):
        import monai.bundle
    parser = monai.bundle.ConfigParser()
    parser.read_config(BUNDLES / bundle / "configs" / "inference.json")
    parser.update({"bundle_root": str(BUNDLES / bundle), "output_dir": output, "checkpoint": checkpoint, **options})
    steps = [step for step in parser["preprocessing#transforms"] if "Check" not in step["_target_"]]
    steps = [{**step, "_target_": STOCK.get(step["_target_"], step["_target_"])} for step in steps]
    parser["preprocessing#transforms"] = steps
    data = [{"image": image} for image in images]
    parser["dataset"] = {"_target_": "Dataset", "data": data, "transform": "@preprocessing"}
    if "SliceBatchInferer" in parser["inferer#_target_"]:
        size = "$[size for size in @padded_size if size > 0]"
        parser["inferer"] = {"_target_": "SliceInferer", "roi_size": size, "spatial_dim": "@slice_dim"}
    parser["inferer#sw_batch_size"] = 4
    inverse = {"transform": "@preprocessing", "orig_keys": "image", "nearest_interp": False}
    parser["postprocessing#transforms"] = [
        {"_target_": "Activationsd", "keys": "pred", "softmax": True},
        {"_target_": "Invertd", "keys": "pred", **inverse},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_postfix": "seg"},
    ]
    parser["handlers"] = [
        {"_target_": "CheckpointLoader", "load_path": "@checkpoint", "load_dict": {"model": "@network"}},
        {"_target_": "StatsHandler", "iteration_log": False},
    ]
    parser["evaluator#iteration_update"], parser["evaluator#inferer"] = None, "@inferer"
    parser["network"] = "$@network_def.to(@device)"
    with clock.running("the rest"):
        parser.get_parsed_content("evaluator").run()
    print(json.dumps(clock))


def volume(path: Path, side: int, spacing: float) -> str:
    """Write a made-up CT of a body, with side x side x 0.8 side voxels."""
    import nibabel
    import numpy as np

    rng = np.random.RandomState(0)
    axes = np.ogrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j, -1 : 1 : int(0.78 * side) * 1j]
    body = sum(axis**2 for axis in axes[:2]) < 0.6
    voxels = np.where(body, 40 + 100 * np.sin(9 * axes[0]) * np.sin(7 * axes[2]), -1000)
    voxels = (voxels + rng.randint(-20, 20, voxels.shape)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-spacing, -spacing, spacing, 1])), path)
    return str(path)


def weights(path: Path, bundle: str, options: dict[str, Any]) -> str:
    """Save random weights of a bundle's network with these options."""
    import torch
    from monai.bundle import ConfigParser

    torch.manual_seed(0)
    parser = ConfigParser()
    parser.read_config(BUNDLES / bundle / "configs" / "inference.json")
    parser.update(options)
    torch.save(parser.get_parsed_content("network_def").state_dict(), path)
    return str(path)


def folder_rows(
    bundle: str, images: list[str], checkpoint: str, options: dict[str, Any], speed: str, rounds: int
) -> Iterator[Any]:
    """Time and peak of ours, with pictures and without, against stock."""
    import measure

    given = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    handlers = json.loads((BUNDLES / bundle / "configs" / "inference.json").read_text(encoding="utf-8"))["handlers"]
    index = next(i for i, handler in enumerate(handlers) if "OverlaySaver" in handler["_target_"])
    found: dict[str, list[Process]] = {"with pictures": [], "without": [], "stock": []}
    for number in range(rounds):
        for way in list(found)[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory() as output:
                if way == "stock":
                    found[way].append(in_shell(stock, bundle, images, output, checkpoint, options))
                    continue
                command = ["segment", bundle, *images, "-o", output, "--checkpoint", checkpoint, *given]
                command += [f"--handlers#{index}#_disabled_", "True"] * (way == "without")
                found[way].append(in_shell(ours, *command))
    theirs = found.pop("stock")
    what = f"{bundle.rpartition('_')[0]}, {len(images)} image{'s' if len(images) > 1 else ''}"
    for way, processes in found.items():
        times = ([process.seconds for process in each] for each in (processes, theirs))
        row = measure.ratio_row(f"{what}, {way}", "stock", speed, *times)
        yield row._replace(units=f"{processes[-1]} / {theirs[-1]}")
        peaks = [statistics.median(process.peak for process in each) for each in (processes, theirs)]
        units = "{:.0f} / {:.0f} MiB".format(*peaks)
        yield measure.Row(f"peak, {what}, {way}", "stock", peaks[0] / peaks[1], "", units, "<= 0.6 x peak")


def rows(cases: int = 40, checked: int = 201, side: int = 192, rounds: int = 3) -> Iterator[Any]:
    """``side`` is that of the CT, ``rounds`` those of the folder; one image is timed ``2 * rounds - 1`` times."""
    import measure

    from monai_attn.data.phantom import make_phantom

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, few = (make_phantom(QUICK_START, folder / f"data_{number}", number) for number in (checked, cases))
        images = [str(path) for path in sorted((few / "images").iterdir())]
        runs = [in_shell(ours, "segment", QUICK_START, images[0], "-o", f"{folder}/{i}") for i in range(2 * rounds - 1)]
        beyond = [run.seconds - run.split["imports"] for run in runs]
        found = statistics.median(beyond), f"{min(beyond):.2f}", str(runs[-1])
        yield measure.Row("segment an image, beyond imports", "", *found, "<= 2.5 s")
        shipped = str(BUNDLES / QUICK_START / "models" / "model.pt")
        yield from folder_rows(QUICK_START, images, shipped, {}, ">= 1.5 x speed", rounds)
        run = in_shell(ours, "check", QUICK_START, "-d", str(data))
        rate = checked / (run.seconds - run.split["imports"])
        yield measure.Row(f"check {checked} cases", "", rate, "", str(run), ">= 20 cases a second")
        run = in_shell(ours, "train", QUICK_START, "-d", str(few), "-o", f"{folder}/out", "--epochs", "2")
        share = run.split["data"] / (run.seconds - run.split["imports"])
        yield measure.Row("train 2 epochs, share of the data", "", share, "", str(run), "<= 0.5 of the time")
        yield from ct_rows(folder, side)


def ct_rows(folder: Path, side: int) -> Iterator[Any]:
    """A CT, with narrow networks of random weights."""
    for bundle, spacing, narrow, speed in (
        ("whole_body_ct_scse_segmentation", 410 / side, {"network_def#features": 4}, ">= 1.5 x speed"),
        ("kits_ct_egcnn_segmentation", 0.8, {"init_filters": 8}, ">= 1 x speed"),
    ):
        checkpoint = weights(folder / "model.pt", bundle, narrow)
        ct = [volume(folder / "ct.nii.gz", side, spacing)]
        yield from folder_rows(bundle, ct, checkpoint, narrow, speed, 1)


if __name__ == "__main__":
    import measure

    measure.main(rows)
