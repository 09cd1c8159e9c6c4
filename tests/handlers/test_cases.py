# SPDX-License-Identifier: Apache-2.0
import errno
import gc
import logging
import weakref

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.inferers import SimpleInferer
from monai.networks.nets import SegResNet
from monai.transforms import AsDiscreted, Compose, LoadImaged

from monai_attn.data import CaseDataset
from monai_attn.errors import ConfigError, DataError, Failure, root_cause
from monai_attn.handlers import AttentionMaps, OverlaySaver, SkipFailedCases
from monai_attn.nets import EGCNN
from monai_attn.transforms import SafeSaveImaged

NAMES = ("a", "b", "c")


class Threshold(torch.nn.Module):
    """Two classes, and an error for images that hold a certain value."""

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def forward(self, x):
        if (x == 77).any() and self.error is not None:
            raise self.error
        return torch.cat([-x, x], dim=1)


@pytest.fixture
def images(tmp_path):
    paths = []
    for number, name in enumerate(NAMES):
        values = np.full((8, 8, 8), number, np.int16)
        if name == "b":
            values[0, 0, 0] = 77
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii.gz")
        paths.append({"image": str(tmp_path / f"{name}.nii.gz")})
    return paths


def evaluator(images, output, on_error="skip", network=None, inferer=None):
    preprocessing = Compose([LoadImaged("image", reader="NibabelReader", ensure_channel_first=True)])
    dataset = CaseDataset(images, preprocessing, on_error=on_error)
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1),
        network=network or Threshold(),
        iteration_update=SkipFailedCases(on_error),
        inferer=inferer,
        postprocessing=Compose([AsDiscreted("pred", argmax=True), SafeSaveImaged("pred", output)]),
        val_handlers=[OverlaySaver(str(output))],
    )


def results(output):
    return sorted(path.name for path in output.glob("*"))


GOOD = ["a_overlay.png", "a_seg.nii.gz", "c_overlay.png", "c_seg.nii.gz"]


def test_a_run_without_faults_is_that_of_the_evaluator(images, tmp_path):
    engine = evaluator(images, tmp_path / "out")
    engine.run()
    assert engine.state.failures == []
    assert results(tmp_path / "out") == sorted([*GOOD, "b_overlay.png", "b_seg.nii.gz"])


class Overflow(Threshold):
    def forward(self, x):
        return torch.where((x == 77).any(), torch.nan, super().forward(x))


def test_a_case_whose_scores_are_nan_fails(images, tmp_path):
    engine = evaluator(images, tmp_path / "out", network=Overflow())
    engine.run()
    (failure,) = engine.state.failures
    assert failure.what.endswith("b.nii.gz")
    assert "scores for it are NaN" in failure.problem
    assert results(tmp_path / "out") == GOOD


class Shrinking(Threshold):
    def forward(self, x):
        return super().forward(x)[..., 1:-1]


def test_a_case_whose_scores_are_not_those_of_its_voxels_fails(images, tmp_path):
    engine = evaluator(images, tmp_path / "out", network=Shrinking())
    engine.run()
    assert ["its scores end with the axes" in failure.problem for failure in engine.state.failures] == [True] * 3
    assert results(tmp_path / "out") == []


def test_a_file_that_cannot_be_read_is_passed_over_and_the_others_are_finished(images, tmp_path):
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "b.nii.gz").read_bytes()[:40])
    engine = evaluator(images, tmp_path / "out")
    engine.run()
    assert results(tmp_path / "out") == GOOD
    engine.run()  # a second run counts anew
    (failure,) = engine.state.failures
    assert "b.nii.gz" in failure.what
    assert engine.state.iteration == 3


@pytest.mark.parametrize(
    ("error", "problem", "expected"),
    [
        (MemoryError("out of it"), "memory ran out", True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), "memory ran out", True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out", True),
        (RuntimeError("sizes differ\nlong text"), "RuntimeError: sizes differ", False),
        (DataError("b.nii.gz", "it is too small", "pad it"), "it is too small", True),
    ],
)
def test_a_case_at_which_the_network_fails_is_passed_over(images, tmp_path, error, problem, expected):
    engine = evaluator(images, tmp_path / "out", network=Threshold(error))
    engine.run()
    assert results(tmp_path / "out") == GOOD
    (failure,) = engine.state.failures
    assert failure.what.endswith("b.nii.gz")
    assert failure.problem.startswith(problem)
    assert "\n" not in failure.problem
    assert failure.expected == expected


def test_a_result_or_picture_that_cannot_be_written_is_a_failure_of_its_case(images, tmp_path, monkeypatch):
    save = nibabel.save

    def fill_up(image, path):
        if "b_seg" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, path)

    monkeypatch.setattr(nibabel, "save", fill_up)
    (tmp_path / "out" / "c_overlay.png").mkdir(parents=True)
    engine = evaluator(images, tmp_path / "out")
    engine.run()
    assert [failure.what for failure in engine.state.failures] == [
        str(tmp_path / "out" / name) for name in ("b_seg.nii.gz", "c_overlay.png")
    ]
    assert {"a_seg.nii.gz", "c_seg.nii.gz"} <= set(results(tmp_path / "out"))


def test_with_stop_the_first_error_ends_the_run(images, tmp_path):
    with pytest.raises(ZeroDivisionError):
        evaluator(images, tmp_path / "out", on_error="stop", network=Threshold(ZeroDivisionError("no"))).run()
    assert results(tmp_path / "out") == GOOD[:2]
    (tmp_path / "a.nii.gz").write_text("something else")
    with pytest.raises(RuntimeError, match="LoadImaged"):
        evaluator(images, tmp_path / "other", on_error="stop").run()


def test_an_error_of_the_configuration_ends_the_run_anyway_as_another_word_than_stop_and_skip(images, tmp_path):
    network = Threshold(ConfigError("roi_size", "it is 0", "give a positive number"))
    with pytest.raises(ConfigError):
        evaluator(images, tmp_path / "out", network=network).run()
    with pytest.raises(ValueError, match="ignore"):
        SkipFailedCases("ignore")


def test_nothing_of_a_failed_case_stays_in_memory(images, tmp_path, monkeypatch):
    monkeypatch.setattr(
        logging.getLogger("monai_attn.handlers.evaluation"), "disabled", True
    )  # pytest keeps what is logged
    kept = []

    class Failing(torch.nn.Module):
        def forward(self, x):
            scores = torch.cat([x, x], dim=1)
            kept.append(weakref.ref(scores))
            raise MemoryError("out of it")

    engine = evaluator(images[:1], tmp_path / "out", network=Failing())
    engine.run()
    gc.collect()
    assert len(engine.state.failures) == 1
    assert [reference() for reference in kept] == [None]


def test_attention_maps_cope_with_a_case_that_was_passed_over(images, tmp_path):
    network, inferer = EGCNN(SegResNet(3, 8, 1, 2, blocks_down=(1, 1, 1), blocks_up=(1, 1))).eval(), SimpleInferer()
    (tmp_path / "b.nii.gz").write_text("something else")
    engine = evaluator(images, tmp_path / "out", network=network, inferer=inferer)
    preprocessing = engine.data_loader.dataset.transform
    AttentionMaps(network, inferer, preprocessing, str(tmp_path / "out")).attach(engine)
    engine.run()
    maps = [f"{case}_attention{end}" for case in "ac" for end in (".png", "_edges.nii.gz", "_gates.0.nii.gz")]
    assert results(tmp_path / "out") == sorted([*GOOD, *maps])
    assert len(engine.state.failures) == 1


def test_a_failure_is_what_the_first_mendable_error_says():
    error = RuntimeError("applying transform <LoadImaged>")
    error.__cause__ = DataError("scan.nii", "it is empty", "copy it again")
    assert root_cause(error) is error.__cause__
    assert str(Failure.of(error, "x")) == str(error.__cause__)
