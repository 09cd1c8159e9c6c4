# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest

from monai_attn.data import case_name, cases

QUICK_START = "hippocampus_mri_scse_segmentation"
Change = Callable[[np.ndarray], np.ndarray]


class Attempt(NamedTuple):
    """How a run ended, as its user sees it: exit code, what was on the screen about it, and what was written."""

    code: int
    screen: str
    output: Path

    def refused(self, *words: object) -> None:
        """Assert that four lines at most say all of ``words``, and that nothing was trained or segmented."""
        assert self.code == 2, self.screen
        said = self.screen[self.screen.index("monai-attn:") :]
        assert len(said.splitlines()) <= 4
        assert [str(word) for word in words if str(word) not in said] == [], said
        assert not list(self.output.rglob("*.pt"))
        assert not list(self.output.rglob("*_seg*"))

    def finished(self) -> Attempt:
        assert self.code == 0, self.screen
        return self

    def mask(self, image: str | Path) -> nibabel.Nifti1Image:
        return nibabel.load(next(self.output.rglob(f"{case_name(image)}_seg.nii.gz")))

    def warned(self, *words: str | Path) -> None:
        """Assert that a warning in the log says all of ``words``."""
        log = next(self.output.glob("*.log")).read_text(encoding="utf-8")
        warnings = [line for line in log.splitlines() if " WARNING " in line]
        assert any(all(str(word) in line for word in words) for line in warnings), warnings


class Lab:
    """A trained quick-start bundle, its data set, and one of its scans to spoil."""

    network: dict[str, Any] = {"network_def#features": 8}  # enough for masks with all structures  # noqa: RUF012

    def __init__(self, bundle: Any, folder: Path, capsys: pytest.CaptureFixture[str] | None = None) -> None:
        self.bundle = bundle
        self.folder = folder
        self.capsys = capsys
        self.original = Path(cases(bundle.data, "validation")[0]["image"])
        image = nibabel.load(self.original)
        self.scan, self.affine = image.get_fdata(dtype=np.float32), image.affine
        self.mask: np.ndarray = np.zeros(0)
        self._number = itertools.count()

    def attempt(self, *configs: str, **overrides: Any) -> Attempt:
        output = Path(overrides.pop("output_dir", self.folder / f"out_{next(self._number)}"))
        if self.capsys is not None:
            self.capsys.readouterr()
        hook, code = sys.excepthook, 0
        sys.excepthook = sys.__excepthook__
        try:
            self.bundle.run(*configs, output_dir=str(output), **{**self.network, **overrides})
        except BaseException as error:
            with pytest.raises(SystemExit) as left:
                sys.excepthook(type(error), error, error.__traceback__)
            code = int(left.value.code or 0)
        finally:
            sys.excepthook = hook
        return Attempt(code, self.capsys.readouterr().err if self.capsys is not None else "", output)

    def segment(self, source: str | Path, **overrides: Any) -> Attempt:
        return self.attempt("inference", **{"input": str(source), "checkpoint": str(self.bundle.weights), **overrides})

    def train(self, dataset_dir: Path | None = None, **overrides: Any) -> Attempt:
        folder = self.folder / f"models_{next(self._number)}"
        options = {"dataset_dir": str(dataset_dir or self.bundle.data), "ckpt_dir": str(folder), "output_dir": folder}
        return self.attempt("train", **{**options, **overrides})

    def evaluate(self, dataset_dir: Path, **overrides: Any) -> Attempt:
        options = {"dataset_dir": str(dataset_dir), "checkpoint": str(self.bundle.weights)}
        return self.attempt("train", "evaluate", **{**options, **overrides})

    def write(self, voxels: np.ndarray, name: str = "scan.nii.gz", *, affine: Any = None) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, self.affine if affine is None else affine), path)
        return path

    def copy(self, name: str = "scan.nii.gz") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.original, path)
        return path

    def dataset(self) -> Path:
        return Path(shutil.copytree(self.bundle.data, self.folder / f"data_{next(self._number)}"))

    @staticmethod
    def respell(path: str | Path, change: Change = np.asarray, affine: Change = np.asarray) -> Path:
        image = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(change(np.asarray(image.dataobj)), affine(image.affine)), path)
        return Path(path)

    def reproduces(self, attempt: Attempt, image: Path) -> None:
        attempt.finished()
        assert np.array_equal(np.asarray(attempt.mask(image).dataobj), self.mask)


@pytest.fixture(scope="session")
def learnt(bundle_on_phantom: Any, once: Any, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The bundle, trained until it finds all structures, and its segmentation of the scan."""
    bundle = bundle_on_phantom(QUICK_START)
    thorough = {**Lab.network, "epochs": 10, "val_interval": 5, "slices_per_volume": 20, "batch_size": 4}
    models = once(
        "faults", lambda folder: bundle.run("train", ckpt_dir=str(folder), output_dir=str(folder), **thorough)
    )
    lab = Lab(bundle._replace(output=models), tmp_path_factory.mktemp("faults"))
    lab.mask = np.asarray(lab.segment(lab.original).mask(lab.original).dataobj)
    assert np.unique(lab.mask).tolist() == [0, 1, 2]
    return lab


@pytest.fixture
def lab(learnt: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Lab:
    own = Lab(learnt.bundle, tmp_path, capsys)
    own.mask = learnt.mask
    return own


@pytest.fixture
def spoil_label(lab: Lab) -> Callable[..., tuple[Path, Path, Path]]:
    """Changes a training label; returns its data set, its image and the label."""

    def spoil(change: Change = np.asarray, affine: Change = np.asarray) -> tuple[Path, Path, Path]:
        data = lab.dataset()
        case = cases(data)[1]
        lab.respell(case["label"], change, affine)
        return data, Path(case["image"]), Path(case["label"])

    return spoil
