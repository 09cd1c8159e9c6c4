# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor, NibabelReader, decollate_batch
from monai.transforms import Compose, LoadImage, LoadImaged, Orientationd, Spacingd
from PIL import Image

from monai_attn.errors import InputError, root_cause
from monai_attn.transforms import CheckImaged, CheckLabeld, ReloadImaged, SafeChannelFirstd, SafeLoadImaged

from ..conftest import refused

AFFINE = np.array([[-1.0, 0, 0, 30], [0, -1, 0, 20], [0, 0, 2, -9], [0, 0, 0, 1]])
KEYS = ["image", "label"]


def save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = AFFINE) -> str:
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return str(path)


def voxels(*shape: int) -> np.ndarray:
    return np.random.RandomState(0).rand(*shape).astype(np.float32)


def load(item: dict[str, object], spatial_dims: int = 3, channels: int = 1, **options: object) -> dict:
    """Load and check a case as the bundles do."""
    keys = [key for key in KEYS if key in item]
    steps = [SafeLoadImaged(keys), SafeChannelFirstd(keys), CheckImaged("image", spatial_dims, channels, **options)]
    for step in [*steps, CheckLabeld("label", values=[0, 1, 255], allow_missing_keys=True)]:
        item = step(item)
    return item


@pytest.fixture
def case(tmp_path: Path) -> dict[str, str]:
    label = (voxels(6, 5, 4) > 0.5).astype(np.uint8)
    return {"image": save(tmp_path / "image.nii.gz", voxels(6, 5, 4)), "label": save(tmp_path / "label.nii.gz", label)}


def test_a_case_comes_out_as_from_monais_loader(case):
    case = {**case, "image_path": case["image"], "age": 40}  # MONAI Label adds a path
    ours, theirs = load(case), LoadImaged(KEYS, ensure_channel_first=True)(case)
    assert ours.keys() == theirs.keys()
    assert (ours["image_path"], ours["age"]) == (case["image"], 40)
    for key in KEYS:
        assert torch.equal(ours[key].as_tensor(), theirs[key].as_tensor())
        assert torch.equal(ours[key].affine, theirs[key].affine)
        assert ours[key].dtype == torch.float32
        assert ours[key].meta.keys() == theirs[key].meta.keys()
    loader = SafeLoadImaged(KEYS)
    assert loader(case, NibabelReader(as_closest_canonical=True))["image"].affine[0, 0] == 1
    assert isinstance(loader, LoadImaged)
    loader._loader.image_only = False  # as MONAI Label wants it
    assert loader(case)["image_meta_dict"]["filename_or_obj"] == case["image"]


def test_a_case_without_a_label_is_named_unless_that_is_allowed(case):
    del case["label"]
    assert "no label" in refused(case["image"], SafeLoadImaged(KEYS), case).problem
    assert SafeLoadImaged(KEYS, allow_missing_keys=True)(case).keys() == {"image"}


def test_pictures_are_legal(tmp_path, caplog):
    Image.fromarray((voxels(6, 5, 3) * 255).astype(np.uint8)).save(tmp_path / "a.jpg")
    Image.fromarray((voxels(6, 5) > 0.5).astype(np.uint8) * 255).save(tmp_path / "b.png")
    item = load({"image": tmp_path / "a.jpg", "label": tmp_path / "b.png"}, 2, 3)
    assert (item["image"].shape, item["label"].shape) == ((3, 5, 6), (1, 5, 6))
    assert caplog.records == []


def test_a_list_of_files_is_one_image_and_the_bad_one_is_named_also_after_batching(case, tmp_path):
    content = voxels(6, 5, 4)
    content[0, 0, 0] = np.nan
    files = [case["image"], save(tmp_path / "flair.nii.gz", content)]
    item = {**case, "image": files}
    assert refused(files[1], load, item, channels=2).problem == "1 of its 120 voxels are NaN or infinite"
    label = save(tmp_path / "one_hot.nii.gz", np.zeros((6, 5, 4, 2), np.uint8))
    assert "one-hot" in refused(label, load, {**case, "label": label}).problem
    loaded = load(item, channels=2, nonfinite="zero")
    assert loaded["image"].shape == (2, 6, 5, 4)
    assert loaded["image"][1, 0, 0, 0] == 0
    (batch,) = DataLoader([loaded, loaded], batch_size=2)
    assert [case["image"].meta["channel_files"] for case in decollate_batch(batch)] == [files] * 2


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_comes_through_data_sets_and_their_processes(case, workers):
    Path(case["label"]).write_text("hello")
    with pytest.raises(RuntimeError) as caught:
        next(iter(DataLoader(CacheDataset([case], SafeLoadImaged(KEYS), cache_num=0), num_workers=workers)))
    assert isinstance(root_cause(caught.value), InputError)
    assert root_cause(caught.value).what == case["label"]


@pytest.mark.parametrize("content", [voxels(6, 5, 4), voxels(6, 5, 4, 2), voxels(6, 5)], ids=["3D", "4D", "2D"])
def test_channels_come_first_whoever_loaded_the_image(tmp_path, content):
    path = save(tmp_path / "a.nii.gz", content)
    expected = LoadImage(ensure_channel_first=True)(path)
    plain = expected.as_tensor()
    for given in (LoadImage()(path), expected, MetaTensor(plain, affine=expected.affine), plain, plain.numpy()):
        found = SafeChannelFirstd(["image", "absent"], allow_missing_keys=True)({"image": given})["image"]
        assert type(found) is type(given)
        assert np.array_equal(np.asarray(found), plain)
    Image.fromarray((voxels(6, 5, 3) * 255).astype(np.uint8)).save(tmp_path / "a.png")  # in color
    expected = LoadImage(ensure_channel_first=True)(tmp_path / "a.png")
    for given in (LoadImage()(tmp_path / "a.png"), expected):
        assert torch.equal(SafeChannelFirstd("image")({"image": given})["image"], expected)


def test_a_resampled_label_becomes_what_its_file_holds(case):
    steps = [Orientationd("label", "RAS", labels=None), Spacingd("label", 2.0, mode="nearest")]
    transformed = Compose([SafeLoadImaged("label"), SafeChannelFirstd("label"), *steps])(case)
    assert transformed["label"].shape != (1, 6, 5, 4)
    reloaded = ReloadImaged(["label", "absent"], allow_missing_keys=True)(transformed)
    assert torch.equal(reloaded["label"].as_tensor(), load(case)["label"].as_tensor())
    mapped = ReloadImaged("label", {1: 7})(transformed)["label"]
    assert torch.equal(mapped.as_tensor(), 7 * load(case)["label"].as_tensor())
    assert mapped.meta.keys() == reloaded["label"].meta.keys()
    assert reloaded["image"] == case["image"]
