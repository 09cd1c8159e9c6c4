# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import itk
import nibabel
import numpy as np
import pytest
import torch
from monai.data import PILReader
from monai.transforms import LoadImage
from PIL import Image

from monai_attn.data import CheckingReader
from monai_attn.errors import DataError

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


def save(path: Path, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return str(path)


def random(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).rand(*shape).astype(np.float32)


def load(path: str | Path | list[str]) -> torch.Tensor:
    return LoadImage(image_only=True, ensure_channel_first=True)(path, CheckingReader())


@pytest.mark.parametrize(
    "name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.png", "a.jpg", "a.npy", "with space, # and ü.nii.gz"]
)
def test_the_image_and_metadata_are_those_of_monai(tmp_path, name):
    path = str(tmp_path / name)
    if name.endswith((".png", ".jpg")):
        Image.fromarray((random(6, 5, 3) * 255).astype(np.uint8)).save(path)
    elif name.endswith(".npy"):
        np.save(path, random(4, 5, 6))
    elif name.endswith((".mha", ".nrrd")):
        itk.imwrite(itk.image_from_array(random(4, 5, 6)), path)
    else:
        save(tmp_path / name, random(4, 5, 6))
    ours, theirs = load(path), LoadImage(image_only=True, ensure_channel_first=True)(path)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours.affine, theirs.affine)
    assert ours.meta.keys() == theirs.meta.keys()
    assert ours.meta["filename_or_obj"] == path


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float64", ">i2", ">f4"])
def test_numbers_are_the_same_whatever_their_type_in_the_file(tmp_path, dtype):
    voxels = (random(4, 5, 6) * 200).round()
    assert np.allclose(load(save(tmp_path / "a.nii.gz", voxels.astype(dtype))), voxels[None], atol=1e-4)


def test_slope_and_intercept_are_applied(tmp_path):
    image = nibabel.Nifti1Image(random(4, 5, 6), AFFINE)
    image.header.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii.gz")  # nibabel chooses a slope
    assert nibabel.load(tmp_path / "a.nii.gz").dataobj.slope < 1e-3
    assert np.allclose(load(tmp_path / "a.nii.gz"), random(4, 5, 6)[None], atol=1e-4)


@pytest.mark.parametrize("kept", [0.5, 0.9])
@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.png", "a.jpg", "a.bmp", "a.tif"])
def test_a_file_cut_off_is_named_in_every_format(tmp_path, name, kept):
    path = tmp_path / name
    if name.endswith((".mha", ".nrrd")):
        itk.imwrite(itk.image_from_array(random(8, 8, 8)), str(path))
    else:
        Image.fromarray((random(64, 64, 3) * 255).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    with pytest.raises(DataError, match="it cannot be read") as caught:
        load(path)
    assert caught.value.what == str(path)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("name", ["a.png", "a.nrrd", "a.unknown"])
def test_text_is_no_image(tmp_path, name):
    (tmp_path / name).write_text("hello")
    with pytest.raises(DataError) as caught:
        load(tmp_path / name)
    assert caught.value.what == str(tmp_path / name)


def test_no_other_reader_is_tried_for_a_damaged_file(tmp_path):
    path = Path(save(tmp_path / "a.nii.gz", random(8, 8, 8)))  # ITK would read it, with zeros
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="damaged"):
        load(path)


def test_nan_in_a_file_stays_nan(tmp_path):
    voxels = random(4, 5, 6)
    voxels[0, 0, 0] = np.nan
    itk.imwrite(itk.image_from_array(voxels), str(tmp_path / "a.nrrd"))
    assert load(save(tmp_path / "a.nii.gz", voxels)).isnan().sum() == 1
    assert load(tmp_path / "a.nrrd").isnan().sum() == 1


def test_several_files_are_the_channels_of_one_image(tmp_path):
    files = [save(tmp_path / f"{name}.nii.gz", random(4, 5, 6) + index) for index, name in enumerate("ab")]
    image = load(files)
    assert np.array_equal(image, np.stack([random(4, 5, 6), random(4, 5, 6) + 1]))


@pytest.mark.parametrize(
    ("shape", "affine", "words"),
    [((4, 5, 7), AFFINE, r"spatial_shape \[4, 5, 7\] is not that"), ((4, 5, 6), 2 * AFFINE, "affine")],
)
def test_channels_on_different_grids_are_both_named(tmp_path, shape, affine, words):
    files = [save(tmp_path / "t1.nii.gz", random(4, 5, 6)), save(tmp_path / "t2.nii.gz", random(*shape), affine)]
    with pytest.raises(DataError, match=words) as caught:
        load([files[0], *files])
    assert caught.value.what == files[1]
    assert files[0] in caught.value.problem


def test_channels_in_different_formats_are_refused(tmp_path):
    itk.imwrite(itk.image_from_array(random(4, 5, 6)), str(tmp_path / "b.nrrd"))
    with pytest.raises(DataError, match="format") as caught:
        load([save(tmp_path / "a.nii.gz", random(4, 5, 6)), str(tmp_path / "b.nrrd")])
    assert caught.value.what == str(tmp_path / "b.nrrd")


def test_a_missing_package_is_not_taken_for_a_bad_file(tmp_path, monkeypatch):
    def missing(*_: object) -> None:
        raise ImportError("no pillow")

    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    monkeypatch.setattr(PILReader, "read", missing)
    with pytest.raises(ImportError, match="no pillow"):
        load(tmp_path / "a.png")


def test_threads_do_not_disturb_each_other(tmp_path):
    pair = [save(tmp_path / f"{name}.nii.gz", random(4, 5, 6)) for name in "ab"]
    loader = LoadImage(image_only=True, ensure_channel_first=True)
    with ThreadPoolExecutor(4) as pool:
        channels = list(pool.map(lambda files: len(loader(files, CheckingReader())), [pair, pair[0]] * 20))
    assert channels == [2, 1] * 20
