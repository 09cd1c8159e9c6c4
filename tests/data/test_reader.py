# SPDX-License-Identifier: Apache-2.0
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import Mock

import ignite.distributed as idist
import itk
import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, PILReader
from monai.transforms import LoadImage
from PIL import Image

from monai_attn.data import CaseDataset, CheckingReader, DistributedRandomSampler, check_file, reader
from monai_attn.data.reader import failure_in
from monai_attn.errors import ConfigError, DataError, Failure, InputError

from ..conftest import refused

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def random(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).rand(*shape).astype(np.float32)


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    if path.suffix in (".mha", ".nrrd"):
        itk.imwrite(itk.image_from_array(voxels), str(path))
    elif path.suffix == ".npy":
        np.save(path, voxels)
    elif path.name.endswith((".nii", ".nii.gz")):
        nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    else:
        Image.fromarray((np.tile(voxels, 10) * 255).astype(np.uint8)).save(path)
    return str(path)


def load(path: str | Path | list[str]) -> torch.Tensor:
    return LoadImage(image_only=True, ensure_channel_first=True)(path, CheckingReader())


def error(path: Path) -> InputError:
    return refused(path, load, path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.png", "a.npy", "with space, # and ü.nii.gz"])
def test_the_image_and_metadata_are_those_of_monai(tmp_path, name):
    path = save(tmp_path / name, random(6, 5) if name == "a.png" else random(4, 5, 6))
    ours, theirs = load(path), LoadImage(image_only=True, ensure_channel_first=True)(path)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours.affine, theirs.affine)
    assert ours.meta.keys() == theirs.meta.keys()
    assert ours.meta["filename_or_obj"] == path
    voxels = random(4, 5, 6)
    voxels[0, 0, 0] = np.nan  # no other reader is tried
    for other in ("nan.nii.gz", "nan.nrrd"):
        assert load(save(tmp_path / other, voxels)).isnan().sum() == 1


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.png", "a.jpg", "a.bmp", "a.tif", "a.unknown"])
def test_a_file_cut_off_is_named_in_every_format(tmp_path, name):
    path = tmp_path / name
    if name == "a.unknown":
        path.write_text("hello")
    else:
        save(path, random(8, 8, 8) if name in ("a.nrrd", "a.mha") else random(64, 6))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "it cannot be read" in error(path).problem


@pytest.mark.parametrize(
    ("name", "shape", "affine", "words"),
    [
        ("t2.nii", (4, 5, 7), AFFINE, r"spatial_shape \[4, 5, 7\] is not that"),
        ("t2.nii", (4, 5, 6), 2 * AFFINE, "affine"),
        ("t2.nrrd", (4, 5, 6), AFFINE, "format"),
    ],
)
def test_channels_on_different_grids_or_in_different_formats_are_both_named(tmp_path, name, shape, affine, words):
    files = [save(tmp_path / "t1.nii.gz", random(4, 5, 6)), save(tmp_path / name, random(*shape), affine)]
    problem = refused(files[1], load, [files[0], *files]).problem
    assert re.search(words, problem)
    assert files[0] in problem


def test_a_missing_package_is_not_taken_for_a_bad_file(tmp_path, monkeypatch):
    monkeypatch.setattr(PILReader, "read", Mock(side_effect=ImportError("no pillow")))
    with pytest.raises(ImportError, match="no pillow"):
        load(save(tmp_path / "a.png", random(6, 5)))


def test_threads_do_not_disturb_each_other(tmp_path):
    pair = [save(tmp_path / f"{name}.nii.gz", random(4, 5, 6)) for name in "ab"]
    loader = LoadImage(image_only=True, ensure_channel_first=True)
    with ThreadPoolExecutor(4) as pool:
        channels = list(pool.map(lambda files: len(loader(files, CheckingReader())), [pair, pair[0]] * 10))
    assert channels == [2, 1] * 10


def test_a_file_that_is_missing_empty_not_to_be_read_or_a_git_lfs_pointer_is_told(tmp_path, monkeypatch):
    assert "no such file" in error(tmp_path / "none.nii.gz").problem
    (tmp_path / "a.nrrd").touch()
    assert "0 bytes" in error(tmp_path / "a.nrrd").problem
    (tmp_path / "a.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "git lfs pull" in error(tmp_path / "a.nii.gz").fix
    monkeypatch.setattr(reader, "_check_content", Mock(side_effect=PermissionError))
    assert "permission" in error(Path(save(tmp_path / "a.nii.gz", random(4, 5, 6)))).problem


def test_a_file_is_read_to_its_end_once_until_it_changes(tmp_path, monkeypatch):
    looks, check_nifti = [], reader.check_nifti
    monkeypatch.setattr(reader, "check_nifti", lambda path: looks.append(path) or check_nifti(path))
    path = Path(save(tmp_path / "a.nii.gz", random(4, 5, 6)))
    check_file(path)
    check_file(str(path))
    assert len(looks) == 1
    path.write_bytes(path.read_bytes()[:100])
    error(path)
    error(path)  # an error is not remembered
    assert len(looks) == 3


ERRORS = {
    "empty.nii": DataError("empty.nii", "it is empty", "copy it again"),
    "odd.nii": ZeroDivisionError("division by zero\nand more"),
    "config": ConfigError("pixdim", "it is 0", "give a number"),
    "large.nii": MemoryError("30 TiB"),
}
DATA = [{"image": name} for name in ("good.nii", "empty.nii", ["odd.nii", "other.nii"], "large.nii")]


def prepare(case):
    name = case["image"][0] if isinstance(case["image"], list) else case["image"]
    if name in ERRORS:
        raise ERRORS[name]
    return {"image": torch.ones(1, 2)}


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_case_becomes_an_item_that_says_what_is_wrong(workers):
    loader = DataLoader(CaseDataset(DATA, prepare, on_error="skip"), batch_size=1, num_workers=workers)
    good, empty, odd, large = loader
    assert torch.equal(good["image"], torch.ones(1, 1, 2))
    assert failure_in(good) is None
    assert failure_in(empty) == Failure("empty.nii", "it is empty", "copy it again")
    assert failure_in(odd) == Failure(
        "odd.nii", "ZeroDivisionError: division by zero", "see the trace in the log", expected=False
    )
    assert failure_in(large).problem == "memory ran out: 30 TiB"


def test_the_trace_goes_to_the_log(caplog):
    with caplog.at_level(logging.ERROR):
        assert failure_in(CaseDataset(DATA, prepare, on_error="skip")[1]).what == "empty.nii"
    assert caplog.records[0].exc_info
    assert "empty.nii cannot be prepared" in caplog.text


@pytest.mark.parametrize(("case", "options"), [("empty.nii", {}), ("config", {"on_error": "skip"})])
def test_by_default_an_error_is_raised_and_one_of_the_configuration_anyway(case, options):
    with pytest.raises(RuntimeError) as caught:
        CaseDataset([{"image": case}], prepare, **options)[0]
    assert caught.value.__cause__ is ERRORS[case]
    with pytest.raises(ValueError, match="ignore"):
        CaseDataset(DATA, prepare, on_error="ignore")


def test_an_epoch_is_drawn_by_seed_and_epoch_and_shared_while_other_random_numbers_go_on(monkeypatch):
    monkeypatch.setattr(idist, "get_world_size", lambda: 2)

    def shares(seed: int, epoch: int) -> list[list[int]]:
        parts = []
        for rank in (0, 1):
            monkeypatch.setattr(idist, "get_rank", lambda rank=rank: rank)
            sampler = DistributedRandomSampler(torch.utils.data.RandomSampler(range(9)), seed)
            sampler.set_epoch(epoch)
            before = torch.get_rng_state()
            parts.append(list(sampler))
            assert torch.equal(torch.get_rng_state(), before)
            assert len(sampler) == len(parts[-1]) == 5
        return parts

    first, second = shares(0, 1)
    assert sorted({*first, *second}) == list(range(9))
    assert shares(0, 1) == [first, second]
    assert shares(0, 2) != [first, second] != shares(1, 1)
