# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

from monai_attn.errors import ConfigError
from monai_attn.run.checks import check_overrides
from monai_attn.run.options import parse_options

from ..conftest import BUNDLES

ENTRIES = {
    "output_dir": "$@bundle_root + '/eval'",
    "input": "@dataset_dir",
    "resume": "",
    "epochs": 24,
    "lr": 0.1,
    "val_interval": "$@epochs // 2",
    "slices_per_volume": 4,
    "seed": 0,
    "amp": "$torch.cuda.is_available()",
    "overwrite": False,
    "device": "$torch.device('cpu')",
    "se": "scse",
    "structures": ["anterior", "posterior"],
    "regions": [[1, 2], [1]],
    "crop_size": [32, 32],
    "network_def": {"_target_": "monai_attn.nets.SCSEUNet", "aggregation": "max", "norm": ["batch", {"eps": 1}]},
    "train": {"steps": [{"_target_": "RandFlipd", "prob": 0.5}], "inferer": "@inferer"},
    "validate": {"handlers": []},
    "validate#handlers": [{"load_path": "@checkpoint"}],
}


@pytest.mark.parametrize(
    ("key", "given", "meant"),
    [
        ("structures", "liver", ["liver"]),
        ("structures", ["L thalamus", "none"], ["L thalamus", "none"]),
        ("structures", "[liver, right kidney]", ["liver", "right kidney"]),
        ("crop_size", "[64,48]", [64, 48]),
        ("crop_size", "64,48", [64, 48]),
        ("regions", "[[1], [2]]", [[1], [2]]),
        ("epochs", "1e2", 100),
        ("lr", "$1 / 3", "$1 / 3"),
        ("overwrite", "true", True),
        ("overwrite", 0, False),
        ("output_dir", "2024", "2024"),
        ("output_dir", 2024, "2024"),
        ("input", "2024", "2024"),
        ("input", "['a', 'b']", ["a", "b"]),
        ("resume", "True", True),
        ("se", "none", None),
        ("se", "$None", None),
        ("device", "null", None),
        ("network_def", "@unet", "@unet"),
        ("network_def#norm", "instance", "instance"),
        ("network_def#new", "None", None),
        ("train#steps#0#prob", "0.25", 0.25),
        ("validate#handlers#0#load_path", "x.pt", "x.pt"),
        ("+validate#handlers", [], []),
    ],
)
def test_a_value_is_read_as_it_is_meant(key, given, meant):
    assert parse_options({key: given}, ENTRIES) == {key: meant}


@pytest.mark.parametrize(
    ("key", "given", "words"),
    [
        ("structures", "5", "expected a list"),
        ("crop_size", "big", "expected a list"),
        ("regions", "[1, 2]", "expected a list"),
        ("epochs", "[1, 2]", "expected a number, as the default is 24"),
        ("epochs", "2.5", "expected a whole number"),
        ("epochs", "True", "expected a number"),
        ("overwrite", "maybe", "expected True or False"),
        ("amp", "perhaps", "expected True or False"),
        ("epochs", "0", "expected a positive number"),
        ("lr", "-1e-3", "expected a positive number"),
        ("lr", "1e999", "expected a positive number"),
        ("val_interval", "0", "expected a positive number"),  # the default is an expression
        ("slices_per_volume", "-1", "expected a positive number"),
        ("seed", "-1", "expected 0 or more"),
        ("structures", "[liver, spleen, liver]", "a name is repeated"),
        ("network_def", "UNet", "expected a component"),
        ("output_dir", "a#b", "MONAI would read # as a separator"),
        ("output_dri", "a", "did you mean --output_dir?"),
        ("network_def#aggregaton", "add", "did you mean --network_def#aggregation?"),
        ("train#step#0", "add", "did you mean --train#steps?"),
        ("train#steps#1#prob", "1", "no entry named '1' in train#steps"),
        ("train#inferer#roi_size", "1", "no entry named 'roi_size' in train#inferer, which is @inferer"),
        ("epochs#x", "1", "no entry named 'x' in epochs, which is 24"),
    ],
)
def test_what_is_not_there_or_clearly_wrong_is_refused(key, given, words):
    with pytest.raises(ConfigError) as caught:
        parse_options({key: given}, ENTRIES)
    assert words in str(caught.value)
    assert caught.value.what.startswith(f"--{key}")


def test_the_arguments_of_a_class_are_known_after_the_imports():
    files = [str(BUNDLES[0] / "configs" / "train.json")]
    check_overrides(files, {"network_def#dropout": 0.1, "network_def#_desc_": "x"})
    with pytest.raises(ConfigError, match="did you mean --network_def#dropout"):
        check_overrides(files, {"network_def#drop": 0.1})
    other = {"network_def#bottleneck": "dense", "network_def#_target_": "monai_attn.nets.SCSEFCDenseNet"}
    assert list(check_overrides(files, other)) == list(other)
    with pytest.raises(ConfigError, match="no entry named 'sigmoid' in validate#inferer"):
        check_overrides(files, {"validate#inferer#sigmoid": True})


def test_a_wrong_name_is_answered_without_heavy_imports():
    code = "import sys, monai_attn.run.options; print({'torch', 'monai', 'numpy'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
