# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.transforms import LoadImage, SaveImage
from monai.utils import ensure_tuple

from monai_attn.data import case_name, cases
from monai_attn.data.phantom import PHANTOMS, chest, make_phantom, tumour
from monai_attn.errors import ConfigError, DataError

BUNDLES = {path.parents[1].name for path in (Path(__file__).parents[2] / "bundles").glob("*/configs/train.json")}
HIPPOCAMPUS = "hippocampus_mri_scse_segmentation"
OCT = "retinal_oct_scse_segmentation"
SKIN = "skin_lesion_focusnet_segmentation"
LUNG = "lung_ct_focusnet_segmentation"
BRATS = "brats_mri_autofocus_segmentation"
KITS = "kits_ct_egcnn_segmentation"
PELVIS = "pelvic_ct_autofocus_segmentation"
SECTIONS = ("training", "validation")

load = LoadImage(ensure_channel_first=True, image_only=True)
load_bytes = LoadImage(ensure_channel_first=True, image_only=True, dtype=np.uint8)


def test_every_bundle_has_its_phantom():
    assert set(PHANTOMS) >= BUNDLES


@pytest.mark.parametrize("bundle", PHANTOMS)
def test_a_phantom_is_a_data_set_like_the_real_one(bundle, tmp_path):
    phantom = PHANTOMS[bundle]
    folder = make_phantom(bundle, tmp_path / "p", cases=5, seed=3)
    assert (len(cases(folder)), len(cases(folder, "validation"))) == (4, 1)
    listing = json.loads((folder / "dataset.json").read_text())
    allowed = phantom.values or tuple(range(len(phantom.labels)))
    assert listing["labels"] == {str(value): name for value, name in zip(allowed, phantom.labels)}
    assert tuple(listing["modality"].values()) == phantom.modalities
    seen = set()
    for case in cases(folder):
        assert all(file.endswith(phantom.suffix) for file in ensure_tuple(case["image"]))
        assert case["label"].endswith(phantom.label_suffix or phantom.suffix)
        image, label = load(case["image"]), load(case["label"])
        channels = 3 if bundle == SKIN else len(phantom.modalities)
        assert image.shape == (channels, *label.shape[1:])
        assert label.shape[0] == 1
        if phantom.spacing:
            assert np.allclose(image.pixdim, phantom.spacing)
            assert image.ndim == 1 + len(phantom.spacing)
        assert torch.equal(image.affine, label.affine)
        assert torch.isfinite(image).all()
        values = set(label.unique().int().tolist())
        assert values <= set(allowed)
        seen |= values
    assert seen == set(allowed)


@pytest.mark.parametrize("bundle", PHANTOMS)
def test_a_phantom_depends_on_its_seed_alone(bundle, tmp_path):
    count = PHANTOMS[bundle].scans + 1
    folders = [make_phantom(bundle, tmp_path / str(i), cases=count, seed=seed) for i, seed in enumerate([0, 0, 1])]
    first, again, other = ([load(cases(folder)[0][kind]) for kind in ("image", "label")] for folder in folders)
    assert all(map(torch.equal, first, again))
    assert first[0].shape != other[0].shape or not torch.equal(first[0], other[0])


@pytest.mark.parametrize("bundle", [HIPPOCAMPUS, OCT])
def test_more_cases_leave_the_first_ones_as_they_are(bundle, tmp_path):
    few, many = (make_phantom(bundle, tmp_path / str(count), cases=count) for count in (3, 4))
    assert torch.equal(load(cases(few)[1]["label"]), load(cases(many)[1]["label"]))


@pytest.mark.parametrize(
    ("bundle", "left", "right"),
    [
        ("brain_mri_scse_segmentation", "L ", "R "),
        ("whole_body_ct_scse_segmentation", "left ", "right "),
        (PELVIS, "left ", "right "),
    ],
)
def test_left_structures_have_smaller_x_than_right_ones(bundle, left, right):
    labels = PHANTOMS[bundle].labels
    pairs = [(name, right + name.removeprefix(left)) for name in labels if name.startswith(left)]
    assert len(pairs) == {"L ": 12, "left ": 1 if bundle == PELVIS else 3}[left]
    for seed in range(3):
        _, label = next(PHANTOMS[bundle].draw(np.random.RandomState(seed)))
        for pair in pairs:
            x_left, x_right = ((label[0] == labels.index(name)).nonzero()[:, 0].float().mean() for name in pair)
            assert x_left + 5 < x_right, pair


def test_organs_have_the_hounsfield_units_of_their_tissue():
    phantom = PHANTOMS["whole_body_ct_scse_segmentation"]
    image, label = next(phantom.draw(np.random.RandomState(0)))
    assert image.dtype == torch.int16
    means = {name: image[label == value].float().mean().item() for value, name in enumerate(phantom.labels)}
    assert means["trachea"] < means["left lung"] < -600
    assert all(20 < means[name] < 80 for name in ("liver", "spleen", "right kidney", "left psoas"))


def test_the_layers_of_a_retina_lie_in_order_in_every_column():
    for image, label in PHANTOMS[OCT].draw(np.random.RandomState(0)):
        assert image.dtype == torch.uint8
        assert image.shape == (1, 256, 160)
        for column in label[0]:
            layers = column[column != PHANTOMS[OCT].labels.index("fluid")].int()
            assert (layers.diff() >= 0).all()
            assert set(range(9)) == set(layers.tolist()) | ({3, 5} if len(layers) < len(column) else set())


@pytest.mark.parametrize(
    ("bundle", "count", "training", "validation"),
    [
        (OCT, 10, ["S01_b00", "S01_b01", "S02_b00"], ["S05_b00", "S05_b01"]),
        (LUNG, 8, [f"phantom_000_z{scan:02d}" for scan in range(4)], [f"phantom_001_z{scan:02d}" for scan in range(4)]),
    ],
)
def test_subjects_with_several_scans_are_not_split(tmp_path, bundle, count, training, validation):
    folder = make_phantom(bundle, tmp_path, cases=count)
    names = {section: [case_name(case["image"]) for case in cases(folder, section)] for section in SECTIONS}
    assert names["training"][: len(training)] == training
    assert names["validation"] == validation


def test_skin_is_stored_as_colours_in_bytes_and_a_mask_of_0_and_255(tmp_path):
    case = cases(make_phantom(SKIN, tmp_path, cases=2))[0]
    drawn, mask = next(PHANTOMS[SKIN].draw(np.random.RandomState([0, 0])))
    image, label = (load_bytes(case[kind]) for kind in ("image", "label"))
    assert image.dtype == label.dtype == torch.uint8
    assert image.shape == (3, *drawn.shape[1:])
    assert (image.float() - drawn.float()).abs().mean() < 8  # what JPEG loses
    assert torch.equal(label.as_tensor(), mask)
    assert label.unique().tolist() == [0, 255]


def test_lesions_vary_in_size_and_pictures_are_not_square():
    pairs = [next(PHANTOMS[SKIN].draw(np.random.RandomState(seed))) for seed in range(40)]
    shares = [(label > 0).float().mean().item() for _, label in pairs]
    assert 0.005 < min(shares) < 0.05
    assert 0.2 < max(shares) < 0.8
    assert all(1.2 < image.shape[1] / image.shape[2] < 1.4 for image, _ in pairs)
    assert len({image.shape for image, _ in pairs}) > 20


def test_slices_of_a_chest_are_planes_of_its_volume_turned_to_the_front_and_windowed():
    volume, lungs = chest.draw_volume(np.random.RandomState(0))
    assert volume.dtype == torch.int16
    planes = (255 * (volume.float() + 1000) / 1400).clamp(0, 255).round().to(torch.uint8).flip(1, 2)
    heights = []
    for image, label in chest.draw(np.random.RandomState(0)):
        found = [z for z in range(planes.shape[-1]) if torch.equal(planes[..., z].as_tensor(), image)]
        assert len(found) == 1
        assert torch.equal(lungs.flip(1, 2)[..., found[0]].as_tensor(), label)
        heights += found
    assert heights == sorted(set(heights))
    assert len(heights) == chest.SCANS


def test_a_whole_chest_can_be_stored_as_a_volume(tmp_path):
    volume, lungs = chest.draw_volume(np.random.RandomState(1))
    SaveImage(output_ext=".nii.gz", output_dtype=np.int16, print_log=False)(volume, filename=str(tmp_path / "chest"))
    stored = load(tmp_path / "chest.nii.gz")
    assert torch.equal(stored.as_tensor(), volume.float().as_tensor())
    assert np.allclose(stored.pixdim, 3.0)
    assert volume[lungs > 0].float().mean() < -700
    middle = lungs.shape[1] // 2
    assert all(side.any() for side in (lungs[:, :middle], lungs[:, middle:]))


def test_modalities_are_files_of_their_own_in_the_order_of_the_channels(tmp_path):
    case = cases(make_phantom(BRATS, tmp_path, cases=2))[0]
    image, label, mask = next(PHANTOMS[BRATS].draw(np.random.RandomState([0, 0])))
    names = [case_name(file) for file in case["image"]]
    assert names == [f"phantom_000_{modality}" for modality in ("t1", "t1c", "t2", "flair")]
    for file, channel in zip(case["image"], image):
        assert torch.equal(load(file)[0].as_tensor(), channel.float())
    for kind, drawn in (("label", label), ("mask", mask)):
        assert torch.equal(load(case[kind]).as_tensor(), drawn.float())


def test_a_tumour_lies_in_the_brain_and_looks_as_its_parts_do():
    contrasts = []
    for seed in range(6):
        image, label, mask = next(tumour.draw(np.random.RandomState(seed)))
        assert torch.equal(image.amin(dim=0) > 0, mask[0] > 0)
        assert not label[mask == 0].any()
        part = {name: label[0] == value for value, name in enumerate(tumour.LABELS)}
        healthy = (label[0] == 0) & (mask[0] > 0)
        _, t1c, _, flair = image.float()
        assert flair[part["edema"]].mean() > 1.2 * flair[healthy].mean()
        if part["enhancing"].any():
            contrasts.append(t1c[part["enhancing"]].mean() / t1c[healthy].mean())
    assert len(contrasts) >= 3
    assert min(contrasts) > 1.2


def test_the_labels_of_2019_join_what_does_not_enhance_with_what_is_dead():
    image, label, _ = next(tumour.draw(np.random.RandomState(1)))
    newer_image, newer_label, _ = next(tumour.draw_2019(np.random.RandomState(1)))
    assert torch.equal(image, newer_image)
    assert torch.equal(newer_label, torch.tensor([0, 1, 2, 1, 4], dtype=torch.uint8)[label.long()])


def test_kidneys_come_in_voxels_of_many_sizes_which_the_files_keep(tmp_path):
    spacings = set()
    for case in cases(make_phantom(KITS, tmp_path, cases=5)):
        in_plane, same, thickness = load(case["label"]).pixdim.tolist()
        assert 0.7 <= in_plane == same <= 0.9
        assert 2 <= thickness <= 3.5
        spacings.add((in_plane, thickness))
    assert len(spacings) == 4


def test_kidneys_take_up_more_contrast_agent_than_tumours():
    for seed in range(5):
        image, label = next(PHANTOMS[KITS].draw(np.random.RandomState(seed)))
        kidney, growth = (image[label == value].float().mean() for value in (1, 2))
        assert 20 < growth + 20 < kidney < 250


def test_organs_of_the_pelvis_have_the_hounsfield_units_of_their_tissue():
    for seed in range(3):
        image, label = next(PHANTOMS[PELVIS].draw(np.random.RandomState(seed)))
        means = {name: image[label == i].float().mean() for i, name in enumerate(PHANTOMS[PELVIS].labels)}
        assert means["bladder"] < means["prostate"] < 70 < 250 < means["left femur"]
        height = {
            name: (label[0] == i).nonzero()[:, 2].float().mean() for i, name in enumerate(PHANTOMS[PELVIS].labels)
        }
        assert height["prostate"] < height["seminal vesicles"] < height["bladder"] + 5


def test_an_existing_data_set_is_not_overwritten(tmp_path):
    make_phantom(HIPPOCAMPUS, tmp_path, cases=2)
    with pytest.raises(DataError, match="holds a data set already"):
        make_phantom(HIPPOCAMPUS, tmp_path, cases=2)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"(?s)file/below.*cannot be written"):
        make_phantom(HIPPOCAMPUS, tmp_path / "file" / "below", cases=2)


@pytest.mark.parametrize(
    ("bundle", "options", "message"),
    [
        ("hippocampus", {}, HIPPOCAMPUS),
        (HIPPOCAMPUS, {"cases": 1}, "at least 2"),
        (OCT, {"cases": 2}, "2 scans each"),
        (HIPPOCAMPUS, {"seed": -1}, "seed=-1"),
    ],
)
def test_an_unknown_bundle_too_few_cases_or_a_negative_seed_are_refused(tmp_path, bundle, options, message):
    with pytest.raises(ConfigError, match=message):
        make_phantom(bundle, tmp_path, **options)
