# SPDX-License-Identifier: Apache-2.0
import json

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImage, Orientation
from PIL import Image

from monai_attn.data import cases

from ..conftest import read_csv
from .conftest import in_ras, save_volume

SKIN, LUNG = "skin_lesion_focusnet_segmentation", "lung_ct_focusnet_segmentation"
NAMES = ("jaccard", "dice", "accuracy", "sensitivity", "specificity")


@pytest.fixture(params=[SKIN, LUNG])
def bundle(request, train_bundle):
    return train_bundle(request.param)


@pytest.mark.parametrize(("name", "baseline"), [(SKIN, "unet"), (LUNG, "residual_unet")])
def test_a_baseline_is_one_override(train_bundle, tmp_path, name, baseline):
    bundle = train_bundle(name)
    limits = {"network_def#channels": None, "channels": [8, 16, 16], "network_def": f"@{baseline}"}
    folder = {"output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    bundle.run("train", "baselines", **folder, **limits)
    bundle.run("train", "baselines", "evaluate", **folder, **limits)
    bundle.run("inference", "baselines", checkpoint=str(tmp_path / "model.pt"), output_dir=str(tmp_path), **limits)
    network = bundle.parsed("train", **limits).get_parsed_content("network_def")
    assert type(network).__name__ == "UNet"
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    network.load_state_dict(state)
    assert any("residual" in name for name in state) == (baseline == "residual_unet")


def test_the_configuration_is_the_papers(bundle):
    config = bundle.parsed("train")
    entries = bundle.entries("train")
    assert (entries["epochs"], entries["batch_size"], entries["lr"], entries["image_size"]) == (80, 8, 1e-3, [256] * 2)
    assert entries["images_per_epoch"] == (6000 if bundle.root.name == SKIN else 1700)
    schedule = config.get_parsed_content("lr_scheduler")
    assert (schedule.factor, schedule.patience, schedule.threshold, schedule.threshold_mode) == (0.5, 4, 1e-3, "abs")
    assert type(config.get_parsed_content("optimizer")) is torch.optim.Adam
    logits = torch.randn(3, 1, 8, 9, generator=torch.Generator().manual_seed(0))
    truth = (logits + 0.5 > 0).float()
    p = torch.sigmoid(logits)
    dice = [(2 * (a * b).sum() + 1) / (a.sum() + b.sum() + 1) for a, b in zip(p, truth)]
    expected = 1 - torch.stack(dice).mean()  # soft Dice of each image, smoothed by 1
    torch.testing.assert_close(config.get_parsed_content("loss")(logits, truth), expected, atol=1e-6, rtol=0)


def test_an_epoch_has_so_many_images_whatever_the_size_of_the_data_set(bundle):
    config = bundle.parsed("train", images_per_epoch=11)
    assert len(config.get_parsed_content("train#sampler")) == 11
    dataset = config.get_parsed_content("train#dataset")
    assert len(dataset) < 11
    assert dataset[0]["image"].shape[1:] == (40, 48)


def test_a_label_is_resized_to_where_its_image_is(bundle, tmp_path):
    """Nearest neighbors would take the corner of a pixel, and move the label by half of one."""
    config = bundle.parsed("train", image_size=[48, 48])
    steps = config.get_parsed_content("train#deterministic_transforms", instantiate=True)
    steps = [step for step in steps if type(step).__name__ in ("AsDiscreted", "Resized")]
    zoom = config.get_parsed_content("train#random_transforms", instantiate=True)[2]
    x, y = torch.meshgrid(torch.arange(480) - 239.5, torch.arange(480) - 239.5, indexing="ij")
    disc = ((x**2 + y**2) < 120**2).float()[None]
    item = Compose(steps)({"image": 200 * disc, "label": disc})
    zoom.prob, zoom.min_zoom = 1.0, 1.1
    zoom.set_random_state(0)
    for case, tolerance in ((item, 0.05), (zoom(dict(item)), 0.25)):  # a zoomed label is of whole pixels
        assert set(case["label"].unique().tolist()) == {0, 1}
        centers = [torch.nonzero(case[key][0] > case[key].max() / 2).float().mean(0) for key in ("image", "label")]
        torch.testing.assert_close(*centers, atol=tolerance, rtol=0)


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(bundle):
    savers = [h for h in bundle.entries("train")["validate"]["handlers"] if h["_target_"].endswith("BestModelSaver")]
    assert [(saver["metric"], saver["lower_is_better"]) for saver in savers] == [("val_loss", True)]
    names = {row["name"] for row in read_csv(bundle.output / "curves.csv")}
    assert {"loss", "val_loss", *(f"val_{name}" for name in NAMES)} <= names


def test_the_five_numbers_are_those_of_the_written_masks_at_the_size_of_the_files(bundle, tmp_path):
    folder = {"output_dir": str(tmp_path)}
    bundle.run("train", "evaluate", ckpt_dir=str(bundle.output), **folder)
    bundle.run("inference", checkpoint=str(bundle.weights), **folder)
    for case in cases(bundle.data, "validation"):
        name = case["label"].rsplit("/", 1)[1][:-4]
        truth = np.asarray(Image.open(case["label"])) > 0
        written = np.asarray(Image.open(tmp_path / f"{name}_seg.png"))
        assert set(np.unique(written)) <= {0, 255}
        found = written > 128  # as the official scorer reads masks
        tp, wrong = (truth & found).sum(), (truth ^ found).sum()
        expected = {"jaccard": tp / (truth | found).sum(), "accuracy": 1 - wrong / truth.size}
        for number, value in expected.items():
            row = next(row for row in read_csv(tmp_path / f"val_{number}_raw.csv") if row["filename"] == name)
            assert float(row["mean"]) == pytest.approx(value, abs=1e-4)


@pytest.fixture(scope="module")
def volume(phantom, tmp_path_factory):
    folder = tmp_path_factory.mktemp("volume")
    case = cases(phantom("pelvic_ct_autofocus_segmentation"))[0]
    for kind in ("image", "label"):
        original = nibabel.load(case[kind])
        voxels = np.asarray(original.dataobj)
        (folder / f"{kind}s").mkdir()
        stored = nibabel.Nifti1Image(voxels.clip(max=1) if kind == "label" else voxels, original.affine)
        nibabel.save(stored, folder / f"{kind}s" / "chest.nii.gz")
    listing = {"test": [{"image": "images/chest.nii.gz", "label": "labels/chest.nii.gz"}]}
    (folder / "dataset.json").write_text(json.dumps(listing))
    return folder


def segment_volume(bundle, image, output):
    options = {"checkpoint": str(bundle.weights), "image_size": [40, 48, -1], "save_attention": True}
    bundle.run("inference", "inference_volume", input=str(image), output_dir=str(output), **options)
    return next(output.glob("*_seg.nii.gz"))


def test_a_volume_is_segmented_as_its_slices_are(train_bundle, volume, tmp_path):
    bundle = train_bundle(LUNG)
    result = nibabel.load(segment_volume(bundle, volume / "images" / "chest.nii.gz", tmp_path))
    image = nibabel.load(volume / "images" / "chest.nii.gz")
    assert result.shape == image.shape
    assert np.allclose(result.affine, image.affine)
    assert result.get_data_dtype() == np.uint8
    level = nibabel.load(tmp_path / "chest_attention_levels.0.nii.gz")
    assert level.shape == image.shape
    assert np.allclose(level.affine, image.affine)

    # the same slice as a picture: columns to the patient's left, rows to the back
    index = image.shape[2] // 2
    gray = np.clip((image.get_fdata()[:, :, index] + 1000) / 1400, 0, 1) * 255
    Image.fromarray(np.round(gray[::-1, ::-1].T).astype(np.uint8)).save(tmp_path / "slice.png")
    bundle.run("inference", input=str(tmp_path / "slice.png"), checkpoint=str(bundle.weights), output_dir=str(tmp_path))
    slice_mask = np.asarray(Image.open(tmp_path / "slice_seg.png")) > 0
    volume_mask = np.asarray(result.dataobj)[::-1, ::-1, index].T > 0
    assert (slice_mask == volume_mask).mean() > 0.995  # the picture's gray values are rounded


def test_a_volume_stored_in_another_orientation_gives_the_same_lungs(train_bundle, volume, tmp_path):
    bundle = train_bundle(LUNG)
    original = LoadImage(image_only=True, ensure_channel_first=True)(volume / "images" / "chest.nii.gz")
    turned = Orientation(axcodes="PIR")(original)
    save_volume(turned, tmp_path / "turned.nii.gz")
    expected = nibabel.load(segment_volume(bundle, volume / "images" / "chest.nii.gz", tmp_path / "a"))
    result = nibabel.load(segment_volume(bundle, tmp_path / "turned.nii.gz", tmp_path / "b"))
    assert result.shape == tuple(turned.shape[1:])
    assert np.array_equal(in_ras(result), in_ras(expected))


def test_a_volume_is_evaluated_as_one_case(train_bundle, volume, tmp_path):
    bundle = train_bundle(LUNG)
    places = {"ckpt_dir": str(bundle.output), "output_dir": str(tmp_path), "dataset_dir": str(volume)}
    options = {"val_section": "test", "image_size": [40, 48, -1]}
    bundle.run("train", "evaluate", "evaluate_volume", **places, **options)
    assert [row["filename"] for row in read_csv(tmp_path / "val_jaccard_raw.csv")] == ["chest"]
    assert (tmp_path / "chest_overlay.png").is_file()
