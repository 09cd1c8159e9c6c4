# SPDX-License-Identifier: Apache-2.0
"""Bundles in other tools of MONAI, by those tools' own code: federated learning, tracking, a program."""

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.bundle.properties import InferProperties, TrainProperties
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject
from monai.handlers import MeanDice, from_engine
from monai.transforms import AsDiscreted
from monai.utils import BundleProperty, BundlePropertyConfig, path_to_sqlite_uri

from monai_attn.cli import main
from monai_attn.data import cases
from monai_attn.nets import SCSEUNet

from ..conftest import BUNDLES, TrainedBundle

QUICK_START = "hippocampus_mri_scse_segmentation"


def settings(bundle: TrainedBundle, name: str, folder: Path) -> dict:
    folders = dict.fromkeys(("output_dir", "ckpt_dir") if name == "train" else ("output_dir",), str(folder))
    return {"dataset_dir": str(bundle.data), "device": "cpu", **folders, **bundle.small(name)}


@pytest.fixture
def client(bundle_on_phantom, tmp_path):
    bundle = bundle_on_phantom(QUICK_START)

    def start(name: str) -> MonaiAlgo:
        options = settings(bundle, "train", tmp_path / name)
        kinds = {"train_kwargs": {**options, "val_interval": 9, "lr_scheduler#T_max": 2}, "eval_kwargs": options}
        algo = MonaiAlgo(str(bundle.root), send_weight_diff=False, **kinds)
        algo.initialize({ExtraItems.CLIENT_NAME: name, ExtraItems.LOGGING_FILE: False})
        return algo

    return start


def test_a_client_of_a_federation_scores_the_weights_that_it_was_sent(client, train_bundle, tmp_path):
    (tmp_path / "a").mkdir()
    algo, score = client("a"), lambda weights: algo.evaluate(ExchangeObject(weights=weights)).metrics["val_mean_dice"]
    trained = torch.load(train_bundle(QUICK_START).weights, weights_only=True)
    nothing = {key: torch.zeros_like(value) for key, value in trained.items()}  # all is background
    without = (score(nothing), score(trained))
    torch.save(trained, tmp_path / "a" / "model.pt")
    assert (score(nothing), score(trained)) == without
    assert without[0] == 0 < without[1]
    algo.finalize()


def test_two_clients_average_their_weights_in_two_rounds(client):
    clients = [client(name) for name in "ab"]
    shared = {key: value.clone() for key, value in clients[0].get_weights().weights.items()}
    for _round in range(2):
        sent = []
        for algo in clients:
            algo.train(ExchangeObject(weights=shared))
            sent.append(algo.get_weights().weights)
        assert not torch.equal(sent[0]["classifier.weight"], shared["classifier.weight"])
        shared = {key: ((value + sent[1][key]) / 2).to(value.dtype) for key, value in sent[0].items()}
    assert [algo.trainer.state.epoch for algo in clients] == [2, 2]
    assert all(value.isfinite().all() for value in shared.values())


def test_training_evaluation_and_inference_are_tracked(train_bundle, tmp_path):
    tracking = pytest.importorskip("mlflow").tracking
    bundle, uri = train_bundle(QUICK_START), path_to_sqlite_uri(str(tmp_path / "runs.db"))
    given = {"tracking": "mlflow", "tracking_uri": uri, "experiment_name": "mine"}
    config, out, weights = str(tmp_path / "config.json"), str(tmp_path), str(bundle.weights)
    bundle.run("train", **given, run_name="7", save_execute_config=config, output_dir=out, ckpt_dir=out)
    bundle.run("train", "evaluate", **given, run_name="evaluate", output_dir=out, checkpoint=weights)
    bundle.run("inference", **given, run_name="infer", output_dir=out, checkpoint=weights)
    client = tracking.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'mine'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {run.info.status for run in runs.values()} == {"FINISHED", "RUNNING"}
    assert {"train_loss", "lr_group_0", "val_mean_dice"} <= runs["7"].data.metrics.keys()
    assert 0 < runs["7"].data.metrics["train_loss"] < 3
    assert [file.path for file in client.list_artifacts(runs["7"].info.run_id)] == ["config.json"]
    assert "val_mean_dice" in runs["evaluate"].data.metrics
    assert runs["infer"].data.params["max_epochs"] == "1"
    small = [word for key, value in bundle.small("train").items() for word in (f"--{key}", str(value))]
    command = ["train", QUICK_START, "-d", str(bundle.data), "-o", out, *small, "--tracking", "mlflow"]
    assert main([*command, "--tracking_uri", uri, "--run_name", "by command"]) == 0
    assert "by command" in {run.info.run_name for run in client.search_runs(["1", "2"])}
    assert main([*command[:-2], "--run_name", "without"]) == 2


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda root: root.name)
@pytest.mark.parametrize(("kind", "properties"), [("train", TrainProperties), ("infer", InferProperties)])
def test_every_property_is_there_and_what_should_refer_to_it_does(bundle, kind, properties):
    file = bundle / "configs" / ("train.json" if kind == "train" else "inference.json")
    workflow = ConfigWorkflow(str(file), workflow_type=kind, logging_file=False)
    workflow.parser.parse()
    assert [name for name, about in properties.items() if about[BundlePropertyConfig.ID] not in workflow.parser] == []
    optional = {name: about for name, about in properties.items() if not about[BundleProperty.REQUIRED]}
    assert [name for name, about in optional.items() if not workflow._check_optional_id(name, about)] == []


def test_a_program_sets_the_parts_of_a_training(bundle_on_phantom, tmp_path):
    bundle = bundle_on_phantom(QUICK_START)
    options = settings(bundle, "train", tmp_path) | {"dataset_dir": "nowhere"}
    workflow = ConfigWorkflow(bundle.config("train"), workflow_type="train", logging_file=False, **options)
    workflow.max_epochs, workflow.val_interval = 2, 2
    workflow.train_dataset_data, workflow.val_dataset_data = (
        cases(bundle.data, section) for section in ("training", "validation")
    )
    workflow.network_def = network = SCSEUNet(2, 1, 3, features=4, depth=1)
    workflow.train_postprocessing = AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=3)
    workflow.train_key_metric = {"train_dice": MeanDice(output_transform=from_engine(["pred", "label"]))}
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    assert workflow.trainer.network is network
    assert (workflow.trainer.state.epoch, workflow.evaluator.state.epoch) == (2, 2)
    assert 0 <= workflow.trainer.state.metrics["train_dice"] <= 1


def test_a_program_gives_the_images_of_an_inference(train_bundle, tmp_path):
    bundle = train_bundle(QUICK_START)
    options = settings(bundle, "inference", tmp_path) | {"dataset_dir": "nowhere", "checkpoint": str(bundle.weights)}
    workflow = ConfigWorkflow(bundle.config("inference"), workflow_type="infer", logging_file=False, **options)
    workflow.initialize()
    workflow.dataset_data = [{"image": case["image"]} for case in cases(bundle.data, "validation")]
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    assert len(list(tmp_path.rglob("*_seg.nii.gz"))) == len(workflow.parser["dataset#data"])
