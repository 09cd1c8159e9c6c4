# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser, verify_net_in_out
from monai.data import MetaTensor
from monai.transforms import LoadImaged

from ..conftest import BUNDLES
from .conftest import components, strings

CONFIGS = ("train", "evaluate", "inference", "multi_gpu_train", "multi_gpu_evaluate")
# entries that MONAI looks for by name
STRUCTURE = {"bundle_root", "dataset", "dataset_dir", "displayable_configs", "evaluator", "finalize", "imports"}
STRUCTURE |= {"initialize", "network_def", "run", "train", "validate"}

pytestmark = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda path: path.name)


# what overlays, handlers and MONAI Label take for granted
ENTRIES = {
    "train": {
        "resume": "",
        "ckpt_interval": 1,
        "pretrained": "",
        "pretrained_partial": False,
        "initialize#3": "$run.use_pretrained(@network_def, @pretrained, @bundle_root, partial=@pretrained_partial, "
        "resume=@resume, ckpt_dir=@ckpt_dir)",
        "train#dataset#data": "$datalist.training_cases(@dataset_dir)",
        "train#dataset#copy_cache": False,
        "train#dataloader#sampler": "@train#sampler",
        "train#trainer#max_epochs": "@epochs",
        "validate#evaluator#network": "@network",
        "validate#dataloader#dataset": "@validate#dataset",
        "run": "$@train#trainer.run()",
        "finalize": "$run.finish()",
    },
    "inference": {
        "overwrite": False,
        "on_error": "skip",
        "save_attention": False,
        "device": "$torch.device('cuda' if torch.cuda.is_available() else 'cpu')",  # of the process
        "unfinished#overwrite": "@overwrite",
        "dataset#_target_": "monai_attn.data.CaseDataset",
        "dataset#data": "$datalist.find_images(@input)",
        "dataset#unfinished": "@unfinished",
        "dataset#on_error": "@on_error",
        "evaluator#iteration_update#on_error": "@on_error",
        "handlers#1#_target_": "monai_attn.handlers.SafeCheckpointLoader",
        "run": "$@evaluator.run()",
        "finalize": "$run.finish()",
    },
}


def load(bundle: Path, name: str) -> dict[str, Any]:
    return json.loads((bundle / "configs" / f"{name}.json").read_text())


def test_no_component_of_monai_is_used_where_ours_is_safer_and_no_path_of_a_machine(bundle):
    """MONAI's write into the file itself, load damaged files, and call the mean of nothing 0."""
    unsafe = {"CheckpointLoader", "CheckpointSaver", "LoadImage", "LoadImaged", "MeanDice", "SaveImage", "SaveImaged"}
    unsafe.add("Spacingd")  # MONAI Label needs SafeSpacingd
    for path in (bundle / "configs").glob("*.json"):
        config = load(bundle, path.stem)
        assert {part["_target_"] for part in components(config)}.isdisjoint(unsafe)
        assert not [text for text in strings(config) if text.startswith("/")]
        loaders = [part for part in components(config) if part["_target_"].endswith(".SafeCheckpointLoader")]
        expected = {"load_path": "@checkpoint", "load_dict": {"model": "@network"}}
        assert [{key: part[key] for key in expected} for part in loaders] == (
            [expected] if path.stem in ("evaluate", "inference") else []
        )


def test_a_bundle_holds_all_files(bundle):
    files = ["LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json", "configs/logging.conf"]
    files += [f"configs/{name}.json" for name in (*CONFIGS, "baselines")]
    assert [name for name in files if not (bundle / name).is_file()] == []


def test_metadata_has_what_the_newest_schema_requires(bundle):
    metadata = load(bundle, "metadata")
    required = {"schema", "version", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"}
    required |= {"task", "description", "authors", "copyright", "network_data_format"}
    assert required <= set(metadata)
    assert metadata["schema"].endswith("meta_schema_20240725.json")
    assert metadata["version"] in metadata["changelog"]
    assert isinstance(metadata["supported_apps"], dict)
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    for tensor in (image, pred):
        assert {"type", "format", "num_channels", "spatial_shape", "dtype", "value_range", "channel_def"} <= set(tensor)
    assert pred["channel_def"]["0"] == "background"  # of label values, as MONAI Label reads it
    assert ["background", *pred["segment_codes"]] == list(pred["channel_def"].values())
    overlapping = load(bundle, "train").get("region_values")  # painted into one label map
    assert len(pred["channel_def"]) == (len(overlapping) + 1 if overlapping else max(pred["num_channels"], 2))
    assert not [text for text in strings(metadata) if "#" in text or text.startswith("%")]


@pytest.mark.parametrize("name", ["train", "inference"])
def test_every_entry_is_used(bundle, name):
    config = load(bundle, name)
    others = [load(bundle, other) for other in ("evaluate", "multi_gpu_train")] if name == "train" else []
    used = {match for part in [config, *others] for text in strings(part) for match in re.findall(r"[@%](\w+)", text)}
    assert set(config) - used - STRUCTURE == set()


def test_predictions_go_back_to_the_grid_of_the_file_before_they_are_made_discrete(bundle):
    for section in (load(bundle, "train")["validate"], load(bundle, "inference")):
        steps = {transform["_target_"]: transform for transform in section["postprocessing"]["transforms"]}
        targets = list(steps)
        if "AsDiscreted" in steps:  # a threshold
            assert targets.index("Invertd") < targets.index("AsDiscreted")
            assert "argmax" not in steps["AsDiscreted"]
        else:
            assert "monai_attn.transforms.InvertArgmaxd" in steps
    config = load(bundle, "inference")
    steps = [step for step in config["postprocessing"]["transforms"] if "_disabled_" not in step]
    saver, last = steps[-1], [step["_target_"] for step in steps][-3:]
    assert last[1:] == ["monai_attn.transforms.AsLabelMapd", "monai_attn.transforms.SafeSaveImaged"]
    if saver["output_ext"] == ".png":
        assert last[0] == "SqueezeDimd"
        assert config["displayable_configs"] == {"result_extension": ".png", "result_dtype": "uint8"}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_that_others_take_for_granted_are_so(bundle, name):
    parser = ConfigParser(load(bundle, name))
    assert {path: parser[path] for path in ENTRIES[name]} == ENTRIES[name]
    assert load(bundle, "train")["network_def"] == load(bundle, "inference")["network_def"]
    autofocus = "autofocus" in bundle.name  # its dilated convolutions are slower in bf16
    assert parser["bf16"] is (False if autofocus else None)
    if name == "inference" or autofocus:
        dims = "_3d" * ("SlidingWindow" in str(parser["inferer"]))
        assert parser["network"] == f"$@network_def.to(@device, memory_format=torch.channels_last{dims})"
    engines = [part for part in components(load(bundle, name)) if part["_target_"].startswith("Supervised")]
    for engine in engines:
        assert re.fullmatch(r"\$inferers\.BF16Inferer\(@[a-z#]*inferer, @bf16\)", engine["inferer"])
    for part in components(load(bundle, name)):
        if part["_target_"] in ("monai_attn.transforms.SafeSaveImaged", "monai_attn.handlers.AttentionMaps"):
            assert part["provenance"] == "@provenance"
        if part["_target_"].endswith(("Provenance", "AttentionMaps")):
            assert "@evaluator#inferer" in (part.get("inferer"), *part.get("parts", ()))


def test_inference_and_validation_see_what_training_saw(bundle):
    """A network that has only seen small crops predicts worse on more at once."""
    train, inference = load(bundle, "train"), load(bundle, "inference")
    resampling = [part for part in components([train, inference]) if part["_target_"].endswith("Spacingd")]
    assert all(part["pixdim"] == "@spacing" for part in resampling)  # a single option, which model.json keeps
    assert inference.get("spacing") == train.get("spacing")
    crops = [part for part in components(train["train"]) if re.match(r"Rand\w*Crop", part["_target_"])]
    if not crops or train["train"]["deterministic_transforms"][2]["spatial_dims"] == 2:
        pytest.skip("it trains on slices, or on strips of pictures, and infers the whole as its authors do")
    assert {crop["spatial_size"] for crop in crops} == {"@crop_size"}
    assert (inference["crop_size"], inference["overlap"]) == (train["crop_size"], train["overlap"])
    for inferer in (train.get("inferer", train["validate"]["inferer"]), inference["inferer"]):
        assert inferer["_target_"] == "SlidingWindowInferer"
        assert (inferer["roi_size"], inferer["mode"]) == ("@crop_size", "gaussian")
        assert inferer["overlap"] == "@overlap"


@pytest.mark.parametrize("name", ["multi_gpu_train", "multi_gpu_evaluate"])
def test_an_overlay_for_any_bundle_is_the_same_in_all(bundle, name):
    ours, first = load(bundle, name), load(BUNDLES[0], name)
    if name == "multi_gpu_train":
        # what the trainer calls is wrapped; checkpoints and validation see the network itself
        called = load(bundle, "train")["train"]["trainer"]["network"]
        assert ours.pop("train#trainer#network") == f"$idist.auto_model({called}, broadcast_buffers=False)"
        del first["train#trainer#network"]
    assert ours == first


def test_attention_and_dicom_seg_are_saved_by_one_switch_each_which_is_off(bundle):
    config = load(bundle, "inference")
    (part,) = [c for c in components(config) if c.get("_disabled_") == "$not @save_attention"]
    assert part["_target_"] == "monai_attn.handlers.AttentionMaps"
    (ending, *others) = [c["output_ext"] for c in config["postprocessing"]["transforms"] if "output_ext" in c]
    pictures = bundle.name.startswith(("skin", "retinal"))  # they take no DICOM
    assert (others, config.get("dicom_seg")) == (([], None) if pictures else ([".dcm"], False))
    assert part["output_ext"] == ("@displayable_configs#result_extension" if ending == ".png" else ending)


def test_every_case_is_loaded_and_checked_first(bundle):
    train, inference = load(bundle, "train"), load(bundle, "inference")
    lists = train["train"]["deterministic_transforms"], inference["preprocessing"]["transforms"]
    names = ["SafeLoadImaged", "SafeChannelFirstd", "CheckImaged", "CheckLabeld"]
    targets = [f"monai_attn.transforms.{name}" for name in names]
    assert [step["_target_"] for step in lists[0][:4]] == targets
    assert [step["_target_"] for step in lists[1][:3]] == targets[:3]
    assert [step["keys"] for step in (*lists[0][:2], *lists[1][:2])] == [["image", "label"]] * 2 + ["image"] * 2
    images, labels = (lists[0][2], lists[1][2]), lists[0][3]
    for key in ("keys", "spatial_dims", "channels", "assume_orientation"):
        assert images[0].get(key) == images[1].get(key)
    is_volume = images[0]["spatial_dims"] == 3
    is_ct = load(bundle, "metadata")["network_data_format"]["inputs"]["image"]["modality"] == "CT"
    assert [image.get("hounsfield", False) for image in images] == [is_volume and is_ct] * 2
    assert ("assume_orientation" in images[0]) == ("assume_orientation" in labels) == is_volume
    assert (images[0]["constant"], images[1]["nonfinite"]) == ("error", "@nonfinite")
    assert labels["values"]


def test_the_network_keeps_the_promise_of_the_metadata(bundle):
    meta, config = (str(bundle / "configs" / f"{name}.json") for name in ("metadata", "inference"))
    verify_net_in_out(net_id="network_def", meta_file=meta, config_file=config, device="cpu")


def test_the_network_as_it_stands_learns_from_monais_tensors(bundle):
    parser = ConfigParser(load(bundle, "train"))
    image = load(bundle, "metadata")["network_data_format"]["inputs"]["image"]
    network = parser.get_parsed_content("train_network" if "train_network" in parser else "network_def").cpu().train()
    shape = (2, image["num_channels"], *[16] * len(image["spatial_shape"]))
    outputs = network(MetaTensor(torch.randn(shape)))
    sum(
        torch.as_tensor(part).square().mean() for part in (outputs if isinstance(outputs, tuple) else (outputs,))
    ).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", ENTRIES)
def test_every_bundle_starts_by_plain_calls(bundle, name):
    config = load(bundle, name)
    start, seed, check = config["initialize"][:3]
    assert start.startswith(f"$run.start('{name}', @output_dir")
    assert seed == "$monai.utils.set_determinism(@seed)"
    assert check.startswith("$run.check_settings(@device, @network_def, ")
    assert ("crop_size=@crop_size" in check) == ("crop_size" in config)
    assert ("image_size=@image_size" in check) == ("image_size" in config)
    for section in (config["train"], config["validate"]) if name == "train" else (config,):
        assert all(isinstance(handler, dict) for handler in section["handlers"])
    first = (config["train"] if name == "train" else config)["handlers"][0]
    assert (first["_target_"], first["name"]) == ("monai_attn.run.RunManifest", name)


def test_training_can_be_resumed_and_stops_at_a_loss_that_is_not_finite(bundle):
    config = load(bundle, "train")
    handlers = {handler["_target_"].split(".")[-1]: handler for handler in config["train"]["handlers"]}
    assert handlers["EpochSeed"]["seed"] == "@seed"
    assert "StopOnNonFinite" in handlers
    checkpoint = handlers["TrainingCheckpoint"]
    assert checkpoint["to_save"] == {name: f"@{name}" for name in ("optimizer", "lr_scheduler")} | {"model": "@network"}
    settings = [checkpoint[key] for key in ("save_dir", "evaluator", "resume", "interval")]
    assert settings == ["@ckpt_dir", "@validate#evaluator", "@resume", "@ckpt_interval"]
    best = [h for h in config["validate"]["handlers"] if h["_target_"] == "monai_attn.handlers.BestModelSaver"]
    assert [(h["save_dir"], h["network"]) for h in best] == [("@ckpt_dir", "@network")]


def test_the_folder_and_the_metadata_are_named_as_monai_label_expects(bundle):
    assert "segmentation" in bundle.name  # the kind of task is found in the name
    assert not [kind for kind in ("classification", "deepedit", "deepgrow", "detection") if kind in bundle.name]
    data = load(bundle, "metadata")["network_data_format"]
    assert (next(iter(data["inputs"])), next(iter(data["outputs"]))) == ("image", "pred")
    labels = data["outputs"]["pred"]["channel_def"]
    assert all(value.isdigit() for value in labels)
    assert len({label.lower() for label in labels.values()}) == len(labels) > 1


def test_monai_label_can_ask_for_a_training(bundle):
    """It gives data, handlers and the number of epochs by these names, and no entry of its own."""
    config = load(bundle, "train")
    assert isinstance(config["validate"]["dataset"]["data"], str)
    validation = [h for h in config["train"]["handlers"] if h["_target_"] == "ValidationHandler"]
    assert [handler["interval"] for handler in validation] == ["@val_interval"]
    assert config["train"]["trainer"]["network"] in ("@network", "@train_network")
    assert "displayable_configs" not in config  # the server fails where a request leaves one out
    # the last epoch of a training of few epochs is validated, or its weights would not be served
    interval = config["val_interval"]
    assert interval == 1 or "@train#trainer#max_epochs" in interval
    assert [text for text in strings(config) if re.search(r"[@%]epochs\b", text)] == ["@epochs"]


def test_what_monai_label_reads_of_an_inference_needs_neither_data_nor_weights(bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MONAI_DATA_DIRECTORY", raising=False)
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    parser.config["bundle_root"] = str(tmp_path)
    steps = parser.get_parsed_content("preprocessing").transforms
    assert isinstance(steps[0], LoadImaged)  # is told there to keep the metadata
    assert callable(parser.get_parsed_content("inferer"))
    assert len(parser.get_parsed_content("postprocessing").transforms) > 1
    assert parser.get_parsed_content("network_def").state_dict()
    assert list(tmp_path.iterdir()) == []


def test_an_iteration_of_a_training_does_nothing_that_the_cache_or_the_validation_can_do(bundle):
    train = load(bundle, "train")["train"]
    assert [train[name] for name in ("postprocessing", "key_metric")] == [None, None]
    steps = [step for name, part in train.items() if name.endswith("transforms") for step in part]
    names = [step["_target_"].split(".")[-1] for step in steps]
    first_random = next(index for index, name in enumerate(names) if name.startswith("Rand"))
    for step, name in zip(steps, names):
        if name == "RandCropByPosNegLabeld":  # it would look for the foreground of the whole volume
            assert {"fg_indices_key", "bg_indices_key"} <= set(step)
            assert "FgBgToIndicesd" in names[:first_random]  # MONAI caches all that comes before the first random step
