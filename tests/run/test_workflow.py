# SPDX-License-Identifier: Apache-2.0
import copy
import json
from pathlib import Path

import pytest
import torch

from monai_attn.errors import ConfigError, DataError
from monai_attn.run.workflow import components, read_bundle, use_pretrained


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundles" / "toy"
    (folder / "configs").mkdir(parents=True)
    train = {
        "bundle_root": ".",
        "rate": 0.5,
        "train": {
            "steps": ["a", {"_target_": "Compose", "transforms": [{"_target_": "torch.nn.Dropout", "p": "@rate"}]}]
        },
    }
    (folder / "configs" / "train.json").write_text(json.dumps(train))
    (folder / "configs" / "more.json").write_text(json.dumps({"rate": 0.25, "train#steps#0": "b"}))
    return folder


def test_configurations_go_over_each_other_and_overrides_over_all(bundle):
    assert read_bundle(bundle, ["train"], {})["rate"] == 0.5
    parser = read_bundle(bundle, ["train", "more"], {"train#steps#0": "c"})
    assert (parser["rate"], parser["train#steps#0"], parser["bundle_root"]) == (0.25, "c", str(bundle))


def test_a_configuration_or_an_entry_that_is_not_there_is_refused_with_those_that_are(bundle):
    with pytest.raises(ConfigError, match="but more, train"):
        read_bundle(bundle, ["inference"], {})
    with pytest.raises(ConfigError, match="did you mean --rate"):
        read_bundle(bundle, ["train"], {"rats": 1})


def test_pretrained_weights_are_a_file_or_the_bundles_own_unless_a_training_resumes(tmp_path):
    (tmp_path / "models").mkdir()
    for number, path in enumerate([tmp_path / "models" / "model.pt", tmp_path / "mine.pt"]):
        torch.save({"weight": torch.full((1, 2), float(number)), "bias": torch.ones(1)}, path)

    def use(pretrained: str, classes: int = 1, *, partial: bool = False, resume: str = "auto") -> float:
        network = torch.nn.Linear(2, classes)
        before = copy.deepcopy(network.state_dict())
        use_pretrained(network, pretrained, str(tmp_path), partial=partial, resume=resume, ckpt_dir=str(tmp_path))
        return None if torch.equal(network.weight, before["weight"]) else network.weight[0, 0].item()

    assert (use("shipped"), use(str(tmp_path / "mine.pt")), use("")) == (0, 1, None)
    with pytest.raises(DataError, match="0 of 2 tensors fit"):
        use("shipped", classes=2, partial=True)
    (tmp_path / "checkpoint_latest.pt").write_text("of a training that was stopped")
    assert use("shipped") is None
    assert use("shipped", resume="") == 0


def test_a_component_is_built_wherever_it_stands_with_what_it_refers_to(bundle):
    parser = read_bundle(bundle, ["train"], {"rate": 0.125})
    assert components(parser, ["torch.nn.Dropout", "torch.nn.Linear"])[0].p == 0.125
    with pytest.raises(ConfigError, match=r"no component torch\.nn\.Linear"):
        components(parser, ["torch.nn.Linear"])
