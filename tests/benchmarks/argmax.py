# SPDX-License-Identifier: Apache-2.0
r"""How much memory an inference of many classes takes, in units of one probability map on the image's grid.

Run it as a script; every variant is measured in a process of its own::

    MALLOC_MMAP_THRESHOLD_=131072 OMP_NUM_THREADS=1 python tests/benchmarks/argmax.py [side of the volume] [classes]

What is measured is the whole inference: loading, sliding window, post-processing and writing. The network is made up
and takes no memory beside its output, so that the memory is that of everything else. The peak (VmHWM) is counted from
the resident memory behind a warm-up on a small volume. ``turned`` is a volume stored in another orientation,
``resampled`` one that is also brought to another voxel size, with nearly as many voxels.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import AsDiscreted, Compose, EnsureTyped, Invertd, LoadImaged, Orientationd, SaveImaged

from monai_attn.inferers import SliceBatchInferer
from monai_attn.transforms import AsLabelMapd, InvertArgmaxd, SafeSpacingd, SaveResultd

INFERERS = {
    "window": SlidingWindowInferer(roi_size=96, sw_batch_size=2, overlap=0.25, mode="gaussian"),
    "slices": SliceBatchInferer(spatial_dim=2),
}


class Nearest(torch.nn.Module):
    """Scores that are the higher, the nearer a voxel comes to the grey value of a class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.linspace(0, 100, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.values.reshape(-1, *[1] * (x.ndim - 2))).square_().neg_()


def evaluator(path: Path, classes: int, output: str, variant: str, inferer: str, spacing: float) -> SupervisedEvaluator:
    steps = [LoadImaged("image", ensure_channel_first=True), Orientationd("image", "RAS", labels=None)]
    steps += [SafeSpacingd("image", [spacing] * 3)] if spacing else []
    pre = Compose([*steps, EnsureTyped("image", dtype=torch.float32)])
    if variant == "ours":
        post = [InvertArgmaxd("pred", pre), AsLabelMapd("pred"), SaveResultd("pred", output)]
    else:
        post = [
            Invertd("pred", pre, "image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            AsLabelMapd("pred"),
            SaveImaged("pred", output_dir=output, output_dtype=np.uint8, separate_folder=False, print_log=False),
        ]
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": str(path)}], pre), batch_size=1),
        network=Nearest(classes),
        inferer=INFERERS[inferer],
        postprocessing=Compose(post),
    )


def memory(name: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def measure(side: int, classes: int, variant: str, inferer: str, spacing: float) -> None:
    """One variant, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        for size in (32, side):
            image = np.random.RandomState(0).randint(0, 100, [size] * 3).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(image, np.diag([-1.0, -1.0, 1.0, 1.0])), f"{folder}/{size}.nii.gz")
        del image
        evaluator(Path(f"{folder}/32.nii.gz"), classes, folder, variant, inferer, spacing).run()
        before, start = memory("VmRSS"), time.perf_counter()
        evaluator(Path(f"{folder}/{side}.nii.gz"), classes, folder, variant, inferer, spacing).run()
        seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
        result = next(Path(folder).glob(f"{side}_*.nii.gz"))
        content = hashlib.sha256(np.asarray(nibabel.load(result).dataobj).tobytes()).hexdigest()
    print(json.dumps({"peak": peak / (4 * classes * side**3), "seconds": seconds, "content": content}))


def main(side: int, classes: int) -> None:
    print(f"{side}^3, {classes} classes; load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} thread(s)")
    print(f"{'':20} {'ours, maps':>12} {'stock, maps':>12} {'ours, s':>9} {'stock, s':>9}")
    for inferer, spacing in [("window", 0.0), ("window", 1.02), ("slices", 0.0)]:
        rows = []
        for variant in ("ours", "stock"):
            command = [sys.executable, __file__, *map(str, (side, classes, variant, inferer, spacing))]
            rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        assert rows[0]["content"] == rows[1]["content"], "the label maps differ"
        peaks, seconds = ([row[name] for row in rows] for name in ("peak", "seconds"))
        name = f"{inferer}, {'resampled' if spacing else 'turned'}"
        print(f"{name:20} {peaks[0]:12.2f} {peaks[1]:12.2f} {seconds[0]:9.0f} {seconds[1]:9.0f}", flush=True)


if __name__ == "__main__":
    numbers = [int(number) for number in sys.argv[1:3]]
    if len(sys.argv) > 3:
        measure(*numbers, sys.argv[3], sys.argv[4], float(sys.argv[5]))
    else:
        main(*(numbers + [256, 27][len(numbers) :]))
