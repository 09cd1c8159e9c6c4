# SPDX-License-Identifier: Apache-2.0
"""How much memory an inference of many classes takes, in units of one probability map on the image's grid.

What is measured is the whole inference: loading, sliding window, post-processing and writing. The network is made up
and takes no memory beside its output, so that the memory is that of everything else. ``turned`` is a volume stored in
another orientation, ``resampled`` one that is also brought to another voxel size, with nearly as many voxels.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import measure
import nibabel
import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import AsDiscreted, Compose, EnsureTyped, Invertd, LoadImaged, Orientationd, SaveImaged

from monai_attn.inferers import SliceBatchInferer
from monai_attn.transforms import AsLabelMapd, InvertArgmaxd, SafeSaveImaged, SafeSpacingd


class Nearest(torch.nn.Module):
    """Scores that are the higher, the nearer a voxel comes to the gray value of a class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.values = torch.nn.Parameter(torch.linspace(0, 100, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.values.reshape(-1, *[1] * (x.ndim - 2))).square_().neg_()


def evaluator(folder: str, side: int, classes: int, variant: str, inferer: str, spacing: float) -> SupervisedEvaluator:
    steps = [LoadImaged("image", ensure_channel_first=True), Orientationd("image", "RAS", labels=None)]
    steps += [SafeSpacingd("image", [spacing] * 3, dtype=torch.float32)] if spacing else []
    pre = Compose([*steps, EnsureTyped("image", dtype=torch.float32)])
    if variant == "ours":
        post = [InvertArgmaxd("pred", pre), AsLabelMapd("pred"), SafeSaveImaged("pred", folder)]
    else:
        post = [
            Invertd("pred", pre, "image", nearest_interp=False),
            AsDiscreted("pred", argmax=True),
            AsLabelMapd("pred"),
            SaveImaged("pred", output_dir=folder, output_dtype=np.uint8, separate_folder=False, print_log=False),
        ]
    window = SlidingWindowInferer(roi_size=3 * side // 8, sw_batch_size=2, overlap=0.25, mode="gaussian")
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": f"{folder}/{side}.nii.gz"}], pre), batch_size=1),
        network=Nearest(classes),
        inferer=SliceBatchInferer(spatial_dim=2) if inferer == "slices" else window,
        postprocessing=Compose(post),
    )


def maps_and_content(side: int, classes: int, variant: str, inferer: str, spacing: float) -> tuple[float, str]:
    """The peak memory of one variant in probability maps, and a hash of the label map that it writes."""
    with tempfile.TemporaryDirectory() as folder:
        for size in (32, side):
            image = np.random.RandomState(0).randint(0, 100, [size] * 3).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(image, np.diag([-1.0, -1.0, 1.0, 1.0])), f"{folder}/{size}.nii.gz")
        del image
        evaluator(folder, 32, classes, variant, inferer, spacing).run()
        peak = measure.peak_of(evaluator(folder, side, classes, variant, inferer, spacing).run)
        result = next(Path(folder).glob(f"{side}_*.nii.gz"))
        content = hashlib.sha256(np.asarray(nibabel.load(result).dataobj).tobytes()).hexdigest()
    return peak / (4 * classes * side**3), content


def rows(side: int = 96, classes: int = 27) -> Iterator[measure.Row]:
    for inferer, spacing in [("window", 0.0), ("window", 1.02), ("slices", 0.0)]:
        ways = [(side, classes, variant, inferer, spacing) for variant in ("ours", "stock")]
        (ours, content), (stock, expected) = (
            measure.in_fresh_process(maps_and_content, *way, environment=measure.GIVE_BACK) for way in ways
        )
        assert content == expected, "the label maps differ"
        name = f"inference, {classes} classes, {side}^3, {inferer}, {'resampled' if spacing else 'turned'}"
        units = f"{ours:.2f} / {stock:.2f} maps"
        yield measure.Row(name, "one probability map", ours, "", units, "<= 1.5 x peak")


if __name__ == "__main__":
    measure.main(rows)
