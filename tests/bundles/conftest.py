# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation, SaveImage
from monai.utils import ensure_tuple
from torch.nn.modules.batchnorm import _BatchNorm

from monai_attn.data import case_name, cases

from ..conftest import BUNDLES, read_csv

NAMES = [root.name for root in BUNDLES]
# volumes by slices, pictures, volumes of one and of two outputs by windows
EACH_KIND = {
    "hippocampus_mri_scse_segmentation",
    "skin_lesion_focusnet_segmentation",
    "pelvic_ct_autofocus_segmentation",
    "hippocampus_mri_egcnn_segmentation",
}
# for tests that take long: one bundle of each kind always, the others with the slow tests
MARKS = {name: [] if name in EACH_KIND else [pytest.mark.slow] for name in NAMES}
mostly_slow = pytest.mark.parametrize(
    "trained", [pytest.param(name, marks=marks) for name, marks in MARKS.items()], indirect=True
)


@pytest.fixture(scope="session", params=NAMES)
def trained(request: pytest.FixtureRequest, train_bundle: Callable[[str], Any]) -> Any:
    return train_bundle(request.param)


def held_out(bundle: Any) -> Any:
    return cases(bundle.data, "validation")[0]["image"]


def give_weights(bundle: Any) -> None:
    """Random weights whose predictions differ from voxel to voxel, so that a wrong orientation is seen."""
    image = held_out(bundle)
    for seed in range(20):
        parser = ConfigParser()
        parser.read_config(bundle.config("inference"))
        torch.manual_seed(seed)
        network, inferer = parser.get_parsed_content("network_def"), parser.get_parsed_content("inferer")
        batch = parser.get_parsed_content("preprocessing")({"image": image})["image"][None]
        for layer in network.modules():
            if isinstance(layer, _BatchNorm):
                layer.momentum = None
        with torch.no_grad():
            inferer(batch, network.train())  # for the statistics of batch norm
            scores = inferer(batch, network.eval())[0]
        labels = scores > 0 if len(scores) == 1 or "region_values" in parser.get() else scores.argmax(0, keepdim=True)
        if len(labels.unique()) > 1:
            bundle.output.mkdir()
            torch.save(network.state_dict(), bundle.weights)
            return
    raise AssertionError(f"{bundle.root.name} predicts the same for all voxels")


def save_volume(image: torch.Tensor, path: Path) -> None:
    """Write an image as it is to a path that ends in .nii.gz."""
    SaveImage(output_dtype=np.float32, writer="NibabelWriter", print_log=False)(image, filename=str(path)[:-7])


def one_file(image: str | list[str], folder: Path) -> Path:
    """Return an image as a single file."""
    if isinstance(image, str):
        return Path(image)
    path = folder / f"{case_name(image[0])}.nii.gz"
    save_volume(LoadImage(image_only=True, ensure_channel_first=True)(image), path)
    return path


def in_ras(image: nibabel.Nifti1Image) -> np.ndarray:
    """The values of a volume along the axes RAS."""
    stored = MetaTensor(torch.as_tensor(np.asarray(image.dataobj)[None]), affine=torch.as_tensor(image.affine))
    return Orientation(axcodes="RAS", labels=None)(stored)[0].numpy()


def evaluated(bundle: Any, folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray, dict[str, str]]]:
    """Evaluate and segment the held-out cases: each with its label, its written result, and its row of the table.

    In float32, as bf16 rounds other sums in another layout of the memory.
    """
    bundle.run("train", "evaluate", ckpt_dir=str(bundle.output), output_dir=str(folder), bf16=False)
    bundle.run("inference", checkpoint=str(bundle.weights), output_dir=str(folder), bf16=False)
    rows = {row["filename"]: row for row in read_csv(folder / f"{bundle.metric}_raw.csv")}
    for case in cases(bundle.data, "validation"):
        name = case_name(ensure_tuple(case["image"])[0])
        files = (case["label"], folder / f"{name}_seg.nii.gz")
        yield case, *(np.asarray(nibabel.load(path).dataobj) for path in files), rows[name]


def dice(truth: np.ndarray, found: np.ndarray, labels: Sequence[int]) -> float:
    t, f = np.isin(truth, labels), np.isin(found, labels)
    return 2 * (t & f).sum() / (t.sum() + f.sum())


def learning_rates(config: ConfigParser, number: int) -> list[float]:
    """Those of so many steps of the schedule."""
    optimizer, schedule = (config.get_parsed_content(name) for name in ("optimizer", "lr_scheduler"))
    rates = []
    for _ in range(number):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def parts(config: Any) -> Iterator[Any]:
    """All values of a configuration, at any depth."""
    yield config
    if isinstance(config, (dict, list)):
        for part in config.values() if isinstance(config, dict) else config:
            yield from parts(part)


def strings(config: Any) -> list[str]:
    return [part for part in parts(config) if isinstance(part, str)]


def components(config: Any) -> list[dict[str, Any]]:
    return [part for part in parts(config) if isinstance(part, dict) and "_target_" in part]
