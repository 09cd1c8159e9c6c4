# SPDX-License-Identifier: Apache-2.0
import json
from pathlib import Path

import pytest
import torch

from monai_attn.errors import ConfigError, DataError
from monai_attn.handlers import BestModelSaver
from monai_attn.run import Workflow, describe_model, finish
from monai_attn.run.bundles import find_bundle
from monai_attn.run.checks import remember
from monai_attn.run.workflow import read_bundle, with_model

from ..conftest import refused

COMMON = {
    "bundle_root": ".",
    "seed": 0,
    "structures": ["liver"],
    "out_channels": "$len(@structures) + 1",
    "size": [8, 8],
    "network_def": {
        "_target_": "UNet",
        "spatial_dims": 2,
        "in_channels": 1,
        "out_channels": "@out_channels",
        "channels": [4, 8],
        "strides": [2],
        "dropout": 0.0,
    },
}
MORE = {"wide": {**COMMON["network_def"], "channels": "@widths"}, "widths": [8, 16]}


@pytest.fixture
def bundle(tmp_path) -> Path:
    train = {**COMMON, "regions": [[1]], "lr": 0.1, "ckpt_dir": "$@bundle_root + '/models'", "initialize": []}
    train["about"] = "$monai_attn.run.describe_model(@structures)"
    configs = {
        "train": {**train, "imports": ["$import monai_attn"], "run": "$@about"},
        "inference": {**COMMON, "checkpoint": "$@bundle_root + '/models/model.pt'", "overlap": 0.5},
        "evaluate": {"checkpoint": "$@ckpt_dir + '/model.pt'"},
        "baselines": MORE,
    }
    (tmp_path / "toy" / "configs").mkdir(parents=True)
    for name, entries in configs.items():
        (tmp_path / "toy" / "configs" / f"{name}.json").write_text(json.dumps(entries))
    return tmp_path / "toy"


def files(bundle: Path, *names: str) -> list[str]:
    return [str(bundle / "configs" / f"{name}.json") for name in names]


def train(bundle: Path, *names: str, **options: object) -> Path:
    """Describe a training beside weights that nobody reads."""
    workflow = Workflow([*files(bundle, "train"), *names], **options)
    workflow.initialize()
    (about,) = workflow.run()
    finish()
    saver = BestModelSaver(str(bundle / "models"), torch.nn.Identity(), description=about)
    saver.save.prepare()
    saver.describe({"epoch": 3, "dice": 0.5, "curve": [1]})
    return bundle / "models" / "model.json"


def test_the_options_of_a_training_go_where_its_weights_go(bundle):
    options = {"structures": "spleen", "network_def#channels": [2, 4], "regions": [[1], [1]], "size": [8, 8], "lr": 1.0}
    path = train(bundle, *files(bundle, "multi_gpu_train")[:0], **options)
    kept = {"structures": ["spleen"], "network_def#channels": [2, 4], "regions": [[1], [1]]}
    about = {"bundle": "toy", "configs": [], "options": kept, "classes": ["spleen"]}
    assert json.loads(path.read_text()) == {**about, "validation": {"epoch": 3, "dice": 0.5}}
    assert with_model(files(bundle, "train", "evaluate"), {"bundle_root": str(bundle)})[1].items() >= kept.items()
    inference = read_bundle(bundle, ["inference"], {"size": [4, 4], "structures": ["kidney"]})
    assert (inference["network_def#channels"], inference["size"]) == ([2, 4], [4, 4])
    assert inference["structures"] == ["kidney"]  # as many
    assert "regions" not in inference


def test_another_configuration_and_a_file_of_ones_own_go_along(bundle, tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"size": [16, 16], "wide#dropout": 0.5, "+initialize": []}))
    train(bundle, *files(bundle, "baselines"), str(tmp_path / "own.json"), network_def="@wide", **{"widths": [3, 5]})
    found, options = with_model(files(bundle, "train", "evaluate"), {"bundle_root": str(bundle)})
    assert found == files(bundle, "train", "baselines", "evaluate")
    assert options == {
        "bundle_root": str(bundle), "size": [16, 16], "wide#dropout": 0.5, "network_def": "@wide", "widths": [3, 5]
    }  # fmt: skip
    assert read_bundle(bundle, ["inference"], {}).get_parsed_content("network_def").channels == [3, 5]


def test_an_option_that_makes_other_tensors_is_refused(bundle):
    path = train(bundle, **{"network_def#channels": [2, 4]})
    given = {"structures": ["a", "b"], "network_def#dropout": 0.1}
    error = refused(
        "--structures ['a', 'b'] --network_def#dropout 0.1", read_bundle, bundle, ["inference"], given, kind=ConfigError
    )
    said = "structures ['liver'], network_def#dropout 0.0"
    assert error.problem == f"{path.with_name('model.pt')} has other tensors: model.json beside it says {said}"
    with pytest.raises(ConfigError, match=r"says network_def#channels \[2, 4\]"):
        read_bundle(bundle, ["inference"], {"network_def#channels": [4, 8]})
    read_bundle(bundle, ["inference"], {"network_def#dropout": 0.1, "out_channels": 2})


def test_what_a_program_trained_has_no_options(bundle):
    remember(None)
    assert describe_model(["liver"]) == {"classes": ["liver"]}
    (bundle / "models").mkdir()
    (bundle / "models" / "model.json").write_text(json.dumps(describe_model(["liver"])))
    assert read_bundle(bundle, ["inference"], {"structures": ["a", "b"]})["structures"] == ["a", "b"]


def test_weights_of_another_bundle_are_named(tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"bundle": "hippocampus_mri_egcnn_segmentation", "options": {}}))
    path = tmp_path / "model.pt"
    error = refused(path, read_bundle, find_bundle("hippocampus_mri_scse"), ["inference"], {"checkpoint": str(path)})
    assert error.problem == "it is of a training of hippocampus_mri_egcnn_segmentation"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"configs": ["../../evil"], "options": {}}',
        '{"configs": [], "options": {"initialize": ["$print(1)"]}}',
        '{"configs": [], "options": {"checkpoint": "a"}}',
    ],
)
def test_a_file_that_is_none_of_a_training_is_refused(bundle, content):
    (bundle / "models").mkdir()
    path = bundle / "models" / "model.json"
    path.write_text(content)
    assert "not of a training" in refused(path, read_bundle, bundle, ["inference"], {}).problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", "$print(1)"),
        ("size", ["%evil.json::x"]),
        ("network_def#_target_", "os.system"),
        ("network_def#_target_", "monai.networks.nets.basic_unet.torch.hub.load"),
        ("network_def", {"_target_": "monai_attn.nets.EGCNN", "main_stream": {"_target_": "AutoRunner"}}),
    ],
)
def test_nothing_in_it_runs_code(bundle, key, value):
    (bundle / "models").mkdir()
    path = bundle / "models" / "model.json"
    path.write_text(json.dumps({"options": {key: value}}))
    with pytest.raises(DataError, match=f"its option {key} could run code") as caught:
        read_bundle(bundle, ["inference"], {})
    assert caught.value.fix == f"give --{key} by hand"
    read_bundle(
        bundle,
        ["inference"],
        {key: {"size": [8, 8]}.get(key, COMMON["network_def"] if key == "network_def" else "UNet")},
    )


def test_networks_of_ours_and_of_monai_are_no_such_code(bundle):
    train(bundle, **{"network_def#_target_": "monai.networks.nets.UNet"})
    assert read_bundle(bundle, ["inference"], {})["network_def#_target_"] == "monai.networks.nets.UNet"
