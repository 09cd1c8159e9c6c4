# SPDX-License-Identifier: Apache-2.0
"""What the bundles of FocusNet do beyond what every bundle does."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from monai.transforms import LoadImage, Orientation, SaveImage
from PIL import Image

from monai_attn.data import cases

SKIN, LUNG = "skin_lesion_focusnet_segmentation", "lung_ct_focusnet_segmentation"
NAMES = ("jaccard", "dice", "accuracy", "sensitivity", "specificity")


@pytest.fixture(params=[SKIN, LUNG])
def bundle(request, train_bundle):
    return train_bundle(request.param)


@pytest.mark.parametrize("baseline", ["unet", "residual_unet"])
def test_a_baseline_is_one_override(bundle, tmp_path, baseline):
    limits = {"network_def#channels": None, "channels": [8, 16, 16], "network_def": f"@{baseline}"}
    folder = {"output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    bundle.run("train", "baselines", **folder, **limits)
    bundle.run("train", "baselines", "evaluate", **folder, **limits)
    bundle.run("inference", "baselines", checkpoint=str(tmp_path / "model.pt"), output_dir=str(tmp_path), **limits)
    network = bundle.parsed("train", **limits).get_parsed_content("network_def")
    assert type(network).__name__ == "UNet"
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
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


def test_the_best_checkpoint_is_that_of_the_lowest_validation_loss(bundle):
    savers = [h for h in bundle.entries("train")["validate"]["handlers"] if h["_target_"].endswith("BestModelSaver")]
    assert [(saver["metric"], saver["lower_is_better"]) for saver in savers] == [("val_loss", True)]
    with open(bundle.output / "curves.csv") as file:
        names = {row["name"] for row in csv.DictReader(file)}
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
            with open(tmp_path / f"val_{number}_raw.csv") as file:
                row = next(row for row in csv.DictReader(file) if row["filename"] == name)
            assert float(row["mean"]) == pytest.approx(value, abs=1e-4)


def test_masks_of_255_and_of_1_are_the_same_lesion(train_bundle, tmp_path):
    bundle = train_bundle(SKIN)
    (tmp_path / "labels").mkdir()
    for case in cases(bundle.data, "validation"):
        mask = np.asarray(Image.open(case["label"]))
        assert set(np.unique(mask)) == {0, 255}
        Image.fromarray((mask > 0).astype(np.uint8)).save(tmp_path / "labels" / case["label"].rsplit("/", 1)[1])
    (tmp_path / "images").symlink_to(bundle.data / "images")
    (tmp_path / "dataset.json").write_text((bundle.data / "dataset.json").read_text().replace('"training"', '"other"'))
    tables = []
    for data in (bundle.data, tmp_path):
        output = tmp_path / data.name
        bundle.run("train", "evaluate", ckpt_dir=str(bundle.output), dataset_dir=str(data), output_dir=str(output))
        tables.append((output / "val_jaccard_raw.csv").read_text())
    assert tables[0] == tables[1]


@pytest.fixture(scope="module")
def volume(phantom, tmp_path_factory):
    """A data set of one CT in Hounsfield units, with one structure for the lungs."""
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
    bundle.run(
        "inference",
        "inference_volume",
        input=str(image),
        checkpoint=str(bundle.weights),
        output_dir=str(output),
        image_size=[40, 48, -1],
        save_attention=True,
    )
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
    grey = np.clip((image.get_fdata()[:, :, index] + 1000) / 1400, 0, 1) * 255
    Image.fromarray(np.round(grey[::-1, ::-1].T).astype(np.uint8)).save(tmp_path / "slice.png")
    bundle.run("inference", input=str(tmp_path / "slice.png"), checkpoint=str(bundle.weights), output_dir=str(tmp_path))
    slice_mask = np.asarray(Image.open(tmp_path / "slice_seg.png")) > 0
    volume_mask = np.asarray(result.dataobj)[::-1, ::-1, index].T > 0
    assert (slice_mask == volume_mask).mean() > 0.995  # the picture's grey values are rounded


def test_a_volume_stored_in_another_orientation_gives_the_same_lungs(train_bundle, volume, tmp_path):
    bundle = train_bundle(LUNG)
    original = LoadImage(image_only=True, ensure_channel_first=True)(volume / "images" / "chest.nii.gz")
    turned = Orientation(axcodes="PIR")(original)
    SaveImage(writer="NibabelWriter", output_dtype=np.float32, resample=False, print_log=False)(
        turned, filename=str(tmp_path / "turned")
    )
    expected = nibabel.load(segment_volume(bundle, volume / "images" / "chest.nii.gz", tmp_path / "a"))
    result = nibabel.load(segment_volume(bundle, tmp_path / "turned.nii.gz", tmp_path / "b"))
    assert result.shape == tuple(turned.shape[1:])
    codes = [nibabel.orientations.io_orientation(part.affine) for part in (result, expected)]
    back = nibabel.orientations.ornt_transform(*codes)
    assert np.array_equal(nibabel.orientations.apply_orientation(result.dataobj, back), np.asarray(expected.dataobj))


def test_a_volume_is_evaluated_as_one_case(train_bundle, volume, tmp_path):
    bundle = train_bundle(LUNG)
    bundle.run(
        "train",
        "evaluate",
        "evaluate_volume",
        ckpt_dir=str(bundle.output),
        output_dir=str(tmp_path),
        dataset_dir=str(volume),
        val_section="test",
        image_size=[40, 48, -1],
    )
    with open(tmp_path / "val_jaccard_raw.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["filename"] for row in rows] == ["chest"]
    assert (tmp_path / "chest_overlay.png").is_file()


def test_a_tiff_is_segmented_as_the_png_of_the_same_pixels(train_bundle, tmp_path):
    bundle = train_bundle(LUNG)
    pixels = Image.open(cases(bundle.data, "validation")[0]["image"])
    results = []
    for ending in ("png", "tif"):
        pixels.save(tmp_path / f"slice.{ending}")
        output = tmp_path / ending
        bundle.run(
            "inference",
            input=str(tmp_path / f"slice.{ending}"),
            checkpoint=str(bundle.weights),
            output_dir=str(output),
        )
        results.append(np.asarray(Image.open(output / "slice_seg.png")))
    assert np.array_equal(*results)


def test_real_skin_pictures_are_learnt_from_and_scored(train_bundle, real_data, tmp_path):
    bundle = train_bundle(SKIN)
    listing = json.loads((real_data("isic2017") / "dataset.json").read_text())
    root = real_data("isic2017")
    few = [{key: str(root / path) for key, path in case.items()} for case in listing["validation"][:12]]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": few[:8], "validation": few[8:]}))
    folder = {"dataset_dir": str(tmp_path), "output_dir": str(tmp_path), "ckpt_dir": str(tmp_path)}
    bundle.run("train", **folder, epochs=3, images_per_epoch=32, val_interval=3)
    with open(tmp_path / "curves.csv") as file:
        loss = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "loss"]
    assert np.isfinite(loss).all()
    assert np.mean(loss[-8:]) < np.mean(loss[:8])


def test_a_real_volume_gives_the_lungs_of_its_slices(train_bundle, real_data, tmp_path):
    bundle = train_bundle(LUNG)
    volume = real_data("lung_ct_3d") / "images" / "lung_004.nii.gz"
    picture = next((real_data("lung_ct_2d") / "images").glob("lung_004_z3*.png"))
    result = nibabel.load(segment_volume(bundle, volume, tmp_path))
    bundle.run("inference", input=str(picture), checkpoint=str(bundle.weights), output_dir=str(tmp_path))
    slice_mask = np.asarray(Image.open(tmp_path / f"{picture.stem}_seg.png")) > 0
    index = int(picture.stem.rsplit("z", 1)[1])
    axes = nibabel.orientations.axcodes2ornt(("L", "P", "S"))
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(result.affine), axes)
    lps = nibabel.orientations.apply_orientation(np.asarray(result.dataobj), turn)
    assert (slice_mask == (lps[:, :, index].T > 0)).mean() > 0.99
