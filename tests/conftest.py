# SPDX-License-Identifier: Apache-2.0
"""What tests share: real data where they are, and bundles trained for a moment on their phantoms."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache, reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import pydicom
import pytest
import torch
from filelock import FileLock
from monai.bundle import ConfigParser, run, run_workflow
from torch import nn

from monai_attn.data.phantom import make_phantom
from monai_attn.errors import DataError, InputError
from monai_attn.run import Workflow

BUNDLES = sorted(path.parent.parent for path in (Path(__file__).parents[1] / "bundles").glob("*/configs/train.json"))

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
CHANNELS = {"in_channels": "@in_channels", "out_channels": "@out_channels"}
FLAT = {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}
NARROW: dict[str, dict[str, Any]] = {
    "FocusNet": {"channels": [8, 16, 16]},
    "AFNet": {"channels": [4, 4, 4, 4, 4, 4, 6, 6], "n_autofocus": 1, "dilations": [1, 3]},
    "EGCNN": {"main_stream": {"_target_": "SegResNet", "spatial_dims": 3, **CHANNELS, **FLAT}},
}


class Terminal(io.StringIO):
    """Stands in for a terminal and keeps what is drawn on it."""

    def isatty(self) -> bool:
        return True


def count(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def trained(network: nn.Module) -> nn.Module:
    """In evaluation, with statistics and affine parameters of batch norm that are not those of the start."""
    for norm in network.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            for value in (norm.weight, norm.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (norm.bias, norm.running_mean):
                nn.init.normal_(value, std=0.3)
    return network.eval()


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def refused(
    what: object, call: Callable[..., object], *arguments: object, kind: type[InputError] = DataError, **options: Any
) -> InputError:
    """The error of three lines by which a call refuses something."""
    with pytest.raises(kind) as caught:
        call(*arguments, **options)
    assert caught.value.what == str(what)
    assert len(str(caught.value).splitlines()) == 3
    return caught.value


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
        """Run the bundle in this process, by our workflow, or as ``python -m monai.bundle run`` does."""
        common = {"bundle_root": str(self.root), "dataset_dir": str(self.data), "device": "cpu"}
        settings = {**common, **self.small(names[0]), **overrides}
        if "network_def" in overrides:  # an exported one has its size
            settings = {key: value for key, value in settings.items() if not key.startswith("network_def#")}
        if os.environ.get("MONAI_ATTN_TEST_RUN") != "plain":
            run_workflow(workflow_name=Workflow, config_file=self.config(*names), **settings)
            return
        options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        with pytest.MonkeyPatch.context() as patch:  # only there do overrides stand that MONAI tells nobody
            command = [monai.bundle.__file__.replace("__init__", "__main__"), "run"]
            patch.setattr(sys, "argv", [*command, "--config_file", str(self.config(*names)), *options])
            run(config_file=self.config(*names), **settings)

    def launch(self, names: Sequence[str], processes: int = 1, **overrides: Any) -> subprocess.Popen[str]:
        """Start ``monai.bundle run``, under ``torchrun`` for several processes, which talk over the loopback only."""
        files = [name if "/" in name else self.config(name)[0] for name in names]
        command = [sys.executable, "-m"]
        if processes > 1:
            command += ["torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
            command += [f"--nproc_per_node={processes}", "-m"]
        command += ["monai.bundle", "run", "--config_file", str(files), "--bundle_root", str(self.root)]
        for key, value in {"dataset_dir": self.data, **self.small(names[0]), **overrides}.items():
            command += [f"--{key}", str(value)]
        alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
        importable = os.pathsep.join([*sys.path, str(Path(__file__).parent / "bundles")])
        environment = {**os.environ, **alone, "PYTHONPATH": importable}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def parsed(self, config: str, **overrides: Any) -> ConfigParser:
        """A configuration to take parts from, small and on the phantom."""
        folders = {"dataset_dir": str(self.data), "ckpt_dir": str(self.output), "output_dir": str(self.output)}
        parser = ConfigParser()
        parser.read_config(self.config(config, "baselines"))
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
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Fills a folder of this run of the tests when a worker of pytest-xdist first asks for it; the others wait."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def fill(name: str, work: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(f"{folder}.lock"):
            if not done.exists():
                work(folder)
                done.touch()
        return folder

    return fill


@pytest.fixture(scope="session")
def phantom(once: Callable[[str, Callable[[Path], object]], Path]) -> Callable[[str], Path]:
    """Makes six cases of a bundle's phantom, to read or to copy, when they are first asked for."""
    return cache(lambda bundle: once(f"{bundle}_phantom", lambda folder: make_phantom(bundle, folder, cases=6)))


@pytest.fixture(scope="session")
def bundle_on_phantom(phantom: Callable[[str], Path]) -> Callable[[str], TrainedBundle]:
    """A bundle with its phantom, to train on."""

    @cache
    def make(name: str) -> TrainedBundle:
        root = next(root for root in BUNDLES if root.name == name)
        return TrainedBundle(root, phantom(name), phantom(name).with_name(f"{name}_out"))

    return make


@pytest.fixture(scope="session")
def train_bundle(
    bundle_on_phantom: Callable[[str], TrainedBundle], once: Callable[[str, Callable[[Path], object]], Path]
) -> Callable[[str], TrainedBundle]:
    """Trains a bundle on its phantom when it is first asked for."""

    @cache
    def train(name: str) -> TrainedBundle:
        bundle = bundle_on_phantom(name)
        once(bundle.output.name, lambda folder: bundle.run("train", output_dir=str(folder), ckpt_dir=str(folder)))
        return bundle

    return train


@pytest.fixture(autouse=True)
def same_random_numbers_in_every_run() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_log_to_the_screen_of_an_earlier_test() -> None:
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if getattr(getattr(handler, "stream", None), "closed", False)]:
        root.removeHandler(handler)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Finds a real data set by its name; the test is skipped where it is not."""

    def find(name: str) -> Path:
        root = os.environ.get("MONAI_DATA_DIRECTORY")
        if root is None or not (Path(root) / name).is_dir():
            pytest.skip(f"needs the folder {name} in $MONAI_DATA_DIRECTORY")
        return Path(root) / name

    return find


@pytest.fixture
def write_series() -> Callable[..., Path]:
    return write_dicom


def write_dicom(
    path: Path,
    positions: Sequence[Any],
    series: str = "1.2.3",
    description: str = "chest",
    voxels: np.ndarray | None = None,
    axes: Any = ((1, 0, 0), (0, 1, 0)),
    **tags: Any,
) -> Path:
    """Write a DICOM series, or one file of several frames, with any tags.

    All pixels of slice k are 10 k, or ``voxels``, whose last axis is along the slices. A position is the z of the first
    pixel, or all three coordinates in mm (LPS); ``axes`` are the steps along the first and second axis.
    """
    stack = np.arange(len(positions)) * np.full((4, 4, 1), 10) if voxels is None else voxels
    spacing = np.linalg.norm(axes, axis=1)
    corners = [[0, 0, position] if np.isscalar(position) else position for position in positions]
    places = [_dataset(ImagePositionPatient=[f"{value:.10g}" for value in corner]) for corner in corners]
    grid = {"PixelSpacing": [f"{size:.10g}" for size in spacing[::-1]], "SliceThickness": "1"}
    plane = {"ImageOrientationPatient": [f"{value:.10g}" for value in np.ravel(axes / spacing[:, None])]}
    several = path.suffix == ".dcm"
    for index, place in enumerate(places[:1] if several else places):
        pixels, kind = (stack, "4.1") if several else (stack[..., index], "4")
        data = _dataset(
            SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{kind}", SOPInstanceUID=f"{series}.{index + 1}", Modality="MR",
            SeriesDescription=description, StudyInstanceUID="1.2", SeriesInstanceUID=series,
            PatientID="P 7", FrameOfReferenceUID="1.2.9",
            InstanceNumber=index + 1, Rows=pixels.shape[1], Columns=pixels.shape[0], SamplesPerPixel=1,
            PhotometricInterpretation="MONOCHROME2", BitsAllocated=16, BitsStored=16, HighBit=15,
            PixelRepresentation=1, PixelData=pixels.astype("<i2").tobytes(order="F"),
        )  # fmt: skip
        if several:
            shared = _dataset(PlaneOrientationSequence=[_dataset(**plane)])
            shared.PixelMeasuresSequence = [_dataset(**grid, **tags)]
            data.NumberOfFrames, data.SharedFunctionalGroupsSequence = stack.shape[2], [shared]
            data.PerFrameFunctionalGroupsSequence = [_dataset(PlanePositionSequence=[place]) for place in places]
        else:
            for name, value in {
                **grid,
                **plane,
                "ImagePositionPatient": place.ImagePositionPatient,
                **tags,
            }.items():
                setattr(data, name, value)
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        file = path if several else path / f"{series}_{index:03}.dcm"
        file.parent.mkdir(parents=True, exist_ok=True)
        if pydicom.__version_info__[0] == "2":  # that MONAI Label needs
            data.is_little_endian, data.is_implicit_VR = True, False
            pydicom.dcmwrite(file, data, write_like_original=False)
        else:
            pydicom.dcmwrite(file, data, enforce_file_format=True)
    return path


def _dataset(**tags: Any) -> pydicom.Dataset:
    data = pydicom.Dataset()
    for name, value in tags.items():
        setattr(data, name, value)
    return data
