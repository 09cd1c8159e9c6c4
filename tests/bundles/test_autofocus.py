# SPDX-License-Identifier: Apache-2.0
import json

import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.losses import DiceLoss

from monai_attn.data import case_name, cases

from .conftest import dice, evaluated, learning_rates

BRATS, PELVIS = "brats_mri_autofocus_segmentation", "pelvic_ct_autofocus_segmentation"


@pytest.fixture(params=[BRATS, PELVIS])
def bundle(request, train_bundle):
    return train_bundle(request.param)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ({"n_autofocus": 0}, "AFNet"),
        ({"network_def": "@aspp", "aspp_fusion": "sum"}, "ASPPNet"),
        ({"network_def": "@deepmedic"}, "DeepMedic"),
    ],
    ids=["Basic", "ASPP-s", "DeepMedic"],
)
def test_the_baselines_are_one_override_each(bundle, overrides, name):
    parser = ConfigParser()
    parser.read_config(bundle.config("train", "baselines"))
    parser.update({"device": "cpu", "channels": [4, 4, 4, 4, 4, 4, 6, 6], "dilations": [1, 3], **overrides})
    network = parser.get_parsed_content("network_def").eval()
    assert type(network).__name__ == name
    channels = bundle.entries("train")["in_channels"]
    classes = len(bundle.entries("train")["structures"]) + 1
    assert network(torch.rand(1, channels, 9, 10, 11)).shape == (1, classes, 9, 10, 11)


def test_the_configuration_of_brats_is_that_of_the_authors_code(train_bundle):
    bundle = train_bundle(BRATS)
    entries, config = bundle.entries("train"), bundle.parsed("train")
    assert (entries["epochs"], entries["batch_size"], entries["crop_size"]) == (400, 10, [75] * 3)
    assert entries["crop_size"][0] - 2 * entries["loss_margin"] == 47
    optimizer = config.get_parsed_content("optimizer")
    assert type(optimizer) is torch.optim.RMSprop
    group = optimizer.param_groups[0]
    assert [group[name] for name in ("lr", "alpha", "eps", "weight_decay", "momentum")] == [1e-3, 0.9, 1e-4, 1e-4, 0.6]
    schedule = config.get_parsed_content("lr_scheduler")
    iterations = len(config.get_parsed_content("train#dataloader"))
    assert (schedule.power, schedule.total_iters) == (0.9, iterations)
    assert learning_rates(config, iterations)[-1] == pytest.approx(1e-3 * (1 / iterations) ** 0.9)
    logits, label = torch.randn(1, 5, 12, 12, 12), torch.randint(0, 5, (1, 1, 12, 12, 12))
    expected = torch.nn.functional.cross_entropy(logits[..., 4:8, 4:8, 4:8], label[:, 0, 4:8, 4:8, 4:8])
    torch.testing.assert_close(config.get_parsed_content("loss")(logits, label), expected)


def test_the_configuration_of_the_pelvis_is_the_papers(train_bundle):
    bundle = train_bundle(PELVIS)
    entries, config = bundle.entries("train"), bundle.parsed("train")
    assert (entries["epochs"], entries["batch_size"], entries["crop_size"]) == (300, 7, [75] * 3)
    rates = learning_rates(config, 201)
    assert type(config.get_parsed_content("optimizer")) is torch.optim.Adam
    assert (rates[0], rates[199], pytest.approx(rates[200])) == (1e-3, 1e-3, 1e-4)
    logits, label = torch.randn(1, 7, 9, 9, 9), torch.randint(0, 7, (1, 1, 9, 9, 9))
    expected = DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True)(
        logits[..., 4:5, 4:5, 4:5], label[..., 4:5, 4:5, 4:5]
    )
    torch.testing.assert_close(config.get_parsed_content("loss")(logits, label), expected)


def test_the_crops_of_the_pelvis_are_around_each_class_equally_often(train_bundle):
    config = train_bundle(PELVIS).parsed("train", crop_size=[1, 1, 1], loss_margin=0)
    dataset = config.get_parsed_content("train#dataset")
    crops = [dataset[index % len(dataset)][0] for index in range(350)]
    counts = np.bincount([int(crop["label"]) for crop in crops], minlength=7)
    assert counts.shape == (7,)
    assert (abs(counts - 50) < 25).all()  # binomial, with a standard deviation of 6.5
    assert set(crops[0]) <= {"image", "label"}


@pytest.mark.slow  # its crops must be larger than the borders that they lose
def test_the_authors_networks_without_padding_are_one_more_file(bundle_on_phantom, tmp_path):
    bundle = bundle_on_phantom(PELVIS)
    official = str(bundle.root / "configs" / "official.json")
    places = {"output_dir": str(tmp_path), "ckpt_dir": str(tmp_path), "checkpoint": str(tmp_path / "model.pt")}
    for name in ("train", "inference"):
        small = {**bundle.small(name), "crop_size": [68, 68, 44], "network_def#dilations": [2, 6]}
        small.pop("loss_margin", None)
        own = {key: value for key, value in places.items() if key in bundle.entries(name)}
        own |= {"bundle_root": str(bundle.root), "dataset_dir": str(bundle.data)}
        run(config_file=[*bundle.config(name), official], device="cpu", **own, **small)
    case = cases(bundle.data, "validation")[0]
    found = nibabel.load(tmp_path / f"{case_name(case['image'])}_seg.nii.gz")
    assert found.shape == nibabel.load(case["image"]).shape
    parser = ConfigParser()
    parser.read_config([*bundle.config("train"), official])
    parser.update({"device": "cpu"})
    loss = parser.get_parsed_content("loss")
    assert parser["inferer"]["tile"] == "$[side - 28 for side in @crop_size]"
    logits, label = torch.randn(1, 7, 5, 5, 5), torch.randint(0, 7, (1, 1, 33, 33, 33))
    expected = DiceLoss(softmax=True, to_onehot_y=True, squared_pred=True)(logits, label[..., 14:19, 14:19, 14:19])
    torch.testing.assert_close(loss(logits, label), expected)


def test_half_of_the_crops_of_brats_are_around_a_labeled_voxel_and_all_inside_the_brain(train_bundle):
    bundle = train_bundle(BRATS)
    config = bundle.parsed("train", crop_size=[1, 1, 1], loss_margin=0)
    dataset = config.get_parsed_content("train#dataset")
    crops = [dataset[index % len(dataset)][0] for index in range(300)]
    labeled = np.mean([float(crop["label"] > 0) for crop in crops])
    assert 0.4 < labeled < 0.6
    assert set(crops[0]) <= {"image", "label"}
    assert all((crop["image"] != 0).any() for crop in crops)  # outside the brain every modality is 0


def test_the_scores_of_brats_are_those_of_the_regions(train_bundle, tmp_path):
    bundle = train_bundle(BRATS)
    for case, truth, found, row in evaluated(bundle, tmp_path):
        for region, labels in (("whole", (1, 2, 3, 4)), ("core", (1, 3, 4)), ("enhancing", (4,))):
            if np.isin(truth, labels).any():
                assert float(row[region]) == pytest.approx(dice(truth, found, labels), abs=1e-4)
        brain = np.asarray(nibabel.load(case["mask"]).dataobj) > 0
        assert not found[~brain].any()


def test_two_modalities_are_one_override(train_bundle, tmp_path):
    bundle = train_bundle(BRATS)
    listing = json.loads((bundle.data / "dataset.json").read_text())
    for section in ("training", "validation"):
        for case in listing[section]:
            case["image"] = [str(bundle.data / case["image"][channel]) for channel in (1, 3)]
            case |= {key: str(bundle.data / case[key]) for key in ("label", "mask")}
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    bundle.run("train", in_channels=2, **dict.fromkeys(("dataset_dir", "output_dir", "ckpt_dir"), str(tmp_path)))
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert next(value for name, value in state.items() if name.endswith("conv.weight")).shape[1] == 2
