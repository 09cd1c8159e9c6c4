# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, run
from monai.transforms import LoadImage

from monai_attn.data import case_name, cases
from monai_attn.nets import EGCNN

from ..conftest import count, read_csv
from .conftest import dice, evaluated, learning_rates

HIPPOCAMPUS = "hippocampus_mri_egcnn_segmentation"
BRATS = "brats_mri_egcnn_segmentation"
KITS = "kits_ct_egcnn_segmentation"
TERMS = ["loss_semantic", "loss_consistency", "loss_edge_dice", "loss_edge_bce"]


@pytest.fixture(params=[HIPPOCAMPUS, BRATS, KITS])
def bundle(request, train_bundle):
    return train_bundle(request.param)


@pytest.mark.parametrize("stream", ["segresnet", "unet", "vnet"])
def test_the_papers_main_streams_are_one_override_each_and_have_no_batch_norm(bundle, stream):
    config = bundle.parsed("train", main_stream=f"@{stream}", init_filters=8)
    network = config.get_parsed_content("network_def").eval()
    norms = {type(module).__name__ for module in network.modules() if "Norm" in type(module).__name__}
    assert norms == {"GroupNorm"}
    with torch.no_grad():
        segmentation, edges, _ = network.forward_all(torch.rand(1, config["in_channels"], 16, 32, 16))
    assert segmentation.shape == (1, 3, 16, 32, 16)
    assert edges.shape == (1, 1, 16, 32, 16)


@pytest.mark.parametrize("name", [BRATS, KITS])
def test_the_papers_main_streams_have_one_depth_one_width_and_about_as_many_parameters(name, bundle_on_phantom):
    found = {}
    for stream in ("segresnet", "unet", "vnet", "segresnet_large", "unet_large", "vnet_large"):
        parser = ConfigParser()
        parser.read_config(bundle_on_phantom(name).config("train", "baselines"))
        parser["main_stream"] = f"@{stream}"
        with torch.device("meta"):
            network = parser.get_parsed_content("network_def")
        alone = count(network.main_stream)
        assert (len(network.gates), len(network.main_stream.encoder_channels)) == (2, 4)
        if "large" not in stream:
            assert network.main_stream.encoder_channels == (32, 64, 128, 256)
        found[stream] = alone, count(network) - alone
    equal, large = [found[name] for name in list(found)[:3]], [found[name] for name in list(found)[3:]]
    assert max(equal)[0] < 1.3 * min(equal)[0]
    assert all(control[0] > sum(whole) for control, whole in zip(large, equal, strict=True))


def test_the_main_stream_alone_is_one_override(train_bundle, tmp_path):
    bundle = train_bundle(HIPPOCAMPUS)
    small = {key: value for key, value in bundle.small("train").items() if not key.startswith("network_def")}
    places = {"bundle_root": bundle.root, "dataset_dir": bundle.data, "output_dir": tmp_path, "ckpt_dir": tmp_path}
    small |= {key: str(path) for key, path in places.items()}
    run(config_file=bundle.config("train", "baselines"), device="cpu", network_def="@main_stream", **small)
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert not [key for key in state if "main_stream" in key or "fusion" in key]
    assert {row["name"] for row in read_csv(tmp_path / "curves.csv")} == {"loss", "loss_semantic", "val_mean_dice"}


def test_the_terms_of_the_loss_are_in_the_curves_and_add_up(bundle):
    rows = read_csv(bundle.output / "curves.csv")
    assert {row["name"] for row in rows} == {"loss", *TERMS, "val_mean_dice"}
    values = {name: [float(row["value"]) for row in rows if row["name"] == name] for name in ["loss", *TERMS]}
    assert all(len(values[name]) == 1 for name in TERMS)
    log = (bundle.output / "train.log").read_text()
    assert [name for name in TERMS if f"{name}: " not in log] == []
    weights = bundle.entries("train")["loss"]
    total = sum(weights[name.replace("loss", "lambda")] * values[name][0] for name in TERMS)
    assert total == pytest.approx(np.mean(values["loss"]), rel=1e-4)


def test_the_learning_rate_falls_by_the_papers_polynomial(bundle):
    config = bundle.parsed("train", epochs=10)
    assert type(config.get_parsed_content("optimizer")) is torch.optim.Adam
    assert learning_rates(config, 10) == pytest.approx([1e-4 * (1 - epoch / 10) ** 0.9 for epoch in range(10)])
    handler = bundle.entries("train")["train"]["handlers"][1]
    assert handler["_target_"] == "LrScheduleHandler"
    assert "epoch_level" not in handler  # by default it is


def test_the_trainer_sees_the_edges_and_the_evaluator_the_plain_network(bundle):
    config = bundle.parsed("train")
    network, wrapper = config.get_parsed_content("network"), config.get_parsed_content("train_network")
    assert type(network) is EGCNN
    assert wrapper.net is network
    trainer, evaluator = (config.get_parsed_content(name) for name in ("train#trainer", "validate#evaluator"))
    assert trainer.network is wrapper
    assert evaluator.network is network
    own = {id(parameter) for parameter in network.parameters()}
    assert {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]} == own


def test_the_label_of_a_crop_is_what_the_loss_expects(bundle):
    crop = bundle.parsed("train").get_parsed_content("train#dataset")[0][0]
    assert set(crop) == {"image", "label"}
    channels = 3 if bundle.root.name == BRATS else 1
    assert crop["label"].shape == (channels, 24, 24, 24)
    if channels == 3:
        assert set(crop["label"].unique().tolist()) <= {0, 1}
        assert (crop["label"].float().diff(dim=0) <= 0).all()


def test_half_of_the_crops_are_around_a_labeled_voxel_and_none_outside_the_body(bundle):
    config = bundle.parsed("train", crop_size=[1, 1, 1], **{"train#dataset#cache_rate": 1.0})
    dataset = config.get_parsed_content("train#dataset")
    crops = [dataset[index % len(dataset)][0] for index in range(200)]
    if bundle.root.name != HIPPOCAMPUS:  # there an affine map moves the voxel
        assert 0.38 < np.mean([float(crop["label"].max() > 0) for crop in crops]) < 0.62
    if bundle.root.name == BRATS:
        assert all((crop["image"] != 0).any() for crop in crops)
    elif bundle.root.name == KITS:
        assert all(float(crop["image"]) > -0.5 for crop in crops if crop["label"] == 0)


def test_the_written_label_maps_give_the_scores_of_the_evaluation(bundle, tmp_path):
    entries = bundle.entries("train")
    regions = entries.get("regions", [[1], [2]])
    names = entries.get("region_names", entries["structures"])
    for _, truth, found, row in evaluated(bundle, tmp_path):
        assert found.dtype == np.uint8
        assert found.shape == truth.shape
        assert set(np.unique(found)) <= {0, 1, 2, 4} - ({4} if bundle.root.name != BRATS else set())
        assert all(np.isin(truth, labels).any() for labels in regions)
        scores = [dice(truth, found, labels) for labels in regions]
        written = [float(row[name]) for name in (*names, "mean")]
        assert written == pytest.approx([*scores, np.mean(scores)], abs=1e-4)


def test_regions_of_brats_become_one_label_map_within_the_brain(train_bundle):
    bundle = train_bundle(BRATS)
    post = bundle.parsed("inference").get_parsed_content("postprocessing#transforms")
    steps = [step for step in post if type(step).__name__ not in ("Invertd", "AsLabelMapd", "SafeSaveImaged")]
    logits = torch.tensor([[1, -1.0, 1, 1, 1, -1], [1, -1, -1, 1, 1, -1], [1, -1, -1, -1, 1, 1]])
    data = {"pred": logits.reshape(3, 6, 1, 1), "image": torch.tensor([0.0, 1, 1, 1, 1, 1]).reshape(1, 6, 1, 1)}
    for step in steps:
        data = step(data)
    assert data["pred"].flatten().tolist() == [0, 0, 2, 1, 4, 4]


def test_intensities_of_ct_are_thousands_of_hounsfield_units(train_bundle):
    bundle = train_bundle(KITS)
    steps = bundle.parsed("inference").get_parsed_content("preprocessing#transforms")
    scale = next(step for step in steps if type(step).__name__ == "ScaleIntensityRanged")
    image = scale({"image": torch.tensor([-3000.0, -500, 0, 40, 2000])})["image"]
    assert image.tolist() == pytest.approx([-1, -0.5, 0, 0.04, 1])


def test_the_edge_map_is_that_of_the_network(train_bundle, tmp_path):
    bundle = train_bundle(HIPPOCAMPUS)
    path = cases(bundle.data, "validation")[0]["image"]
    window = {"crop_size": [64, 64, 64], "bf16": False}
    options = {"checkpoint": str(bundle.weights), "output_dir": str(tmp_path), "save_attention": True}
    bundle.run("inference", input=path, **options, **window)
    config = bundle.parsed("inference", input=path, **window)
    network = config.get_parsed_content("network_def").eval()
    network.load_state_dict(torch.load(bundle.weights, weights_only=True))
    image = config.get_parsed_content("dataset")[0]["image"]
    with torch.no_grad():
        expected = config.get_parsed_content("inferer")(image[None], network.edges)[0]
    written = LoadImage(ensure_channel_first=True)(tmp_path / f"{case_name(path)}_attention_edges.nii.gz")
    assert 0 <= written.min() < written.max() <= 1
    torch.testing.assert_close(written.as_tensor(), expected.as_tensor(), atol=1e-4, rtol=0)
