# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, NibabelReader
from monai.transforms import LoadImaged, Orientation
from PIL import Image

from monai_attn.data.nifti import read_header
from monai_attn.errors import DataError, InputError, root_cause
from monai_attn.transforms import SafeLoadImageD, SafeLoadImaged, SafeLoadImageDict

AFFINE = np.array([[-1.0, 0, 0, 30], [0, -1, 0, 20], [0, 0, 2, -9], [0, 0, 0, 1]])
KEYS = ["image", "label"]


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = AFFINE) -> str:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return str(path)


def voxels(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).rand(*shape).astype(np.float32)


@pytest.fixture
def case(tmp_path: Path) -> dict[str, str]:
    label = (voxels(6, 5, 4) > 0.5).astype(np.uint8)
    return {"image": save(tmp_path / "image.nii.gz", voxels(6, 5, 4)), "label": save(tmp_path / "label.nii.gz", label)}


def guard(**options: object) -> SafeLoadImaged:
    return SafeLoadImaged(KEYS, **{"spatial_dims": 3, "channels": 1, "label_values": [0, 1], **options})


def error(case: dict[str, object], **options: object) -> DataError:
    with pytest.raises(DataError) as caught:
        guard(**options)(case)
    assert len(str(caught.value).splitlines()) == 3
    return caught.value


def test_a_case_comes_out_as_from_monais_loader(case):
    case = {**case, "image_path": case["image"], "age": 40}  # MONAI Label adds a path
    ours, theirs = guard()(case), LoadImaged(KEYS, ensure_channel_first=True)(case)
    assert ours.keys() == theirs.keys()
    assert (ours["image_path"], ours["age"]) == (case["image"], 40)
    for key in KEYS:
        assert torch.equal(ours[key].as_tensor(), theirs[key].as_tensor())
        assert torch.equal(ours[key].affine, theirs[key].affine)
        assert ours[key].dtype == torch.float32
        assert ours[key].meta.keys() == theirs[key].meta.keys()


def test_it_is_a_load_imaged_whose_metadata_can_be_had_apart_as_monai_label_wants_it(case):
    load = SafeLoadImaged("image", 3, 1)
    assert isinstance(load, LoadImaged)
    load._loader.image_only = False
    assert load(case)["image_meta_dict"]["filename_or_obj"] == case["image"]


def test_for_inference_there_need_be_no_label(case):
    assert SafeLoadImaged("image", 3, 1)({"image": case["image"]})["image"].shape == (1, 6, 5, 4)
    assert guard(allow_missing_keys=True)({"image": case["image"]}).keys() == {"image"}


def test_a_case_without_a_label_is_named_in_training(case):
    del case["label"]
    assert error(case).what == case["image"]
    assert "no label" in error(case).problem


@pytest.mark.parametrize("key", KEYS)
def test_a_damaged_file_is_named(case, key):
    path = Path(case[key])
    path.write_bytes(path.read_bytes()[:-10])
    assert error(case).what == case[key]


def test_wrong_dimensions_values_and_contrast_are_found(case, tmp_path):
    other = str(tmp_path / "x.nii.gz")
    for key, content, words in [
        ("image", voxels(6, 5, 4, 2), "4D (2 volumes), expected 3D, 1 channel"),
        ("image", voxels(6, 5), "2D"),
        ("image", np.full((6, 5, 4), np.nan, np.float32), "120 of its 120 voxels"),
        ("image", np.full((6, 5, 4), 7, np.float32), "no contrast"),
        ("label", np.full((6, 5, 4), 2, np.uint8), "values 2, expected 0, 1"),
        ("label", np.full((6, 5, 4), 0.996, np.float32), "values 0.996"),
        ("label", np.zeros((6, 5, 4, 2), np.uint8), "one-hot"),
        ("label", np.zeros((6, 5, 3), np.uint8), "shape (6, 5, 3) is not the shape (6, 5, 4)"),
    ]:
        save(Path(other), content)
        found = error({**case, key: other}, constant="error")
        assert found.what == other
        assert words in found.problem


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (AFFINE + np.diag([0, 0, 1.0, 0]), "spacing differs"),
        (AFFINE + 30 * np.eye(1, 16, 3).reshape(4, 4), "origin differs, by up to 30.0 voxels"),
        (AFFINE * (1 - 2 * np.eye(1, 16).reshape(4, 4)), "direction differs"),
    ],
)
def test_a_label_shifted_or_flipped_is_refused_with_both_files(case, affine, words):
    save(Path(case["label"]), np.ones((6, 5, 4), np.uint8), affine)
    found = error(case)
    assert found.what == case["label"]
    assert case["image"] in found.problem
    assert words in found.problem


def test_swapped_files_are_recognised(tmp_path):
    image, label = voxels(12, 12, 12), (voxels(12, 12, 12) > 0.5).astype(np.uint8)
    swapped = {"image": save(tmp_path / "l.nii.gz", label), "label": save(tmp_path / "i.nii.gz", image)}
    assert "swapped" in error(swapped).fix


def test_a_file_that_does_not_tell_its_orientation_can_be_given_one(case):
    for key in KEYS:
        save(Path(case[key]), np.asarray(nibabel.load(case[key]).dataobj), None)
    assert "orientation is unknown" in error(case).problem
    item = guard(assume_orientation="LPS")(case)
    assert [item[key].affine.diagonal().tolist() for key in KEYS] == [[-1, -1, 1, 1]] * 2


def test_a_singular_affine_is_refused(case):
    affine = AFFINE.copy()
    affine[:, 2] = affine[:, 1]
    image = nibabel.Nifti1Image(voxels(6, 5, 4), None)
    image.header.set_sform(affine, 1)
    image.to_filename(case["image"])
    assert error(case).what == case["image"]


def test_a_sheared_image_is_loaded_with_a_warning(case, caplog):
    affine = AFFINE.copy()
    affine[0, 1] = 0.2
    for key in KEYS:
        save(Path(case[key]), np.asarray(nibabel.load(case[key]).dataobj), affine)
    assert np.allclose(guard()(case)["image"].affine, affine, atol=1e-6)
    assert f"{case['image']}: its axes are not at right angles" in caplog.text


@pytest.mark.parametrize("fields", [{"srow_x": [np.nan] * 4}, {"pixdim": [1, 1, 1, 0, 0, 0, 0, 0]}])
def test_an_affine_that_was_mended_is_told_with_what_is_used(tmp_path, caplog, fields):
    image = nibabel.Nifti1Image(voxels(6, 5, 4), AFFINE)
    image.set_qform(AFFINE, 1)
    image.set_sform(AFFINE, 1)
    nibabel.save(image, tmp_path / "a.nii")
    header, content = read_header(str(tmp_path / "a.nii")), (tmp_path / "a.nii").read_bytes()
    for name, value in fields.items():
        header[name] = value
    (tmp_path / "a.nii").write_bytes(header.binaryblock + content[348:])
    loaded = SafeLoadImaged("image", 3, 1)({"image": tmp_path / "a.nii"})["image"]
    assert loaded.affine.isfinite().all()
    (message,) = [message for message in caplog.messages if "contradicts itself" in message]
    spacing = " x ".join(f"{size:g}" for size in loaded.pixdim)
    assert f"{tmp_path / 'a.nii'}" in message
    assert f"used: spacing {spacing} mm, axes LPS" in message


@pytest.mark.parametrize("axcodes", ["LPS", "PIR", "SRA"])
def test_storage_in_other_axes_is_the_same_image(case, tmp_path, axcodes):
    original = guard()(case)["image"]
    stored = nibabel.load(case["image"])
    target = nibabel.orientations.axcodes2ornt(axcodes)
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(stored.affine), target)
    stored.as_reoriented(turn).to_filename(tmp_path / "turned.nii.gz")
    turned = SafeLoadImaged("image", 3, 1)({"image": tmp_path / "turned.nii.gz"})["image"]
    to_ras = Orientation("RAS", labels=None)
    assert torch.equal(to_ras(turned), to_ras(original))


@pytest.mark.parametrize(("shape", "spacing"), [((6, 5, 1), 8), ((8, 8, 8), 1), ((6, 5, 4), 8)])
def test_a_single_slice_a_small_and_a_thick_volume_are_legal(tmp_path, caplog, shape, spacing):
    path = save(tmp_path / "a.nii.gz", voxels(*shape), np.diag([1.0, 1, spacing, 1]))
    assert SafeLoadImaged("image", 3, 1)({"image": path})["image"].shape == (1, *shape)
    assert caplog.records == []


def test_pictures_of_2d_bundles_are_legal(tmp_path, caplog):
    Image.fromarray((voxels(6, 5, 3) * 255).astype(np.uint8)).save(tmp_path / "a.jpg")
    Image.fromarray((voxels(6, 5) > 0.5).astype(np.uint8) * 255).save(tmp_path / "b.png")
    item = SafeLoadImaged(KEYS, 2, 3, label_values=[0, 1, 255])(
        {"image": tmp_path / "a.jpg", "label": tmp_path / "b.png"}
    )
    assert (item["image"].shape, item["label"].shape) == ((3, 5, 6), (1, 5, 6))
    assert caplog.records == []


def test_a_list_of_files_is_one_image_and_the_bad_one_is_named(case, tmp_path):
    content = voxels(6, 5, 4)
    content[0, 0, 0] = np.nan
    files = [case["image"], save(tmp_path / "flair.nii.gz", content)]
    found = error({**case, "image": files}, channels=2)
    assert (found.what, found.problem) == (files[1], "1 of its 120 voxels are NaN or infinite")
    assert error({**case, "image": files}, channels=4).problem == "it is 3D, 2 channels, expected 3D, 4 channels"
    item = guard(channels=2, nonfinite="zero")({**case, "image": files})
    assert item["image"].shape == (2, 6, 5, 4)
    assert item["image"][1, 0, 0, 0] == 0


def test_a_reader_given_for_the_call_is_used(case):
    assert guard()(case, NibabelReader(as_closest_canonical=True))["image"].affine[0, 0] == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_comes_through_data_sets_and_their_processes(case, workers):
    Path(case["label"]).write_text("hello")
    with pytest.raises(RuntimeError) as caught:
        next(iter(DataLoader(CacheDataset([case], guard(), cache_num=0), num_workers=workers)))
    assert isinstance(root_cause(caught.value), InputError)
    assert root_cause(caught.value).what == case["label"]


def test_dictionary_transforms_have_the_names_that_monai_gives():
    assert SafeLoadImageD is SafeLoadImageDict is SafeLoadImaged
