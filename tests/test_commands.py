# SPDX-License-Identifier: Apache-2.0
"""The commands in README, documentation and model cards: their files and options exist, and the cheap ones run."""

from __future__ import annotations

import ast
import inspect
import itertools
import pydoc
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigComponent, ConfigParser, run

from monai_attn import cli
from monai_attn.workflow.bundle import find_bundle, parse_override, read_bundle
from monai_attn.workflow.call import BundleCall

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/README.md")])
QUICK_START = "bundles/hippocampus_mri_scse_segmentation"
ASSIGNMENT = re.compile(r"([A-Z_]+)=(.*)", re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The commands in a page's ``bash`` blocks as words, with the page's own variables put in."""
    bundle = page.parents[1].relative_to(ROOT) if page.parent.parent.parent.name == "bundles" else QUICK_START
    variables, found = {"BUNDLE": str(bundle)}, []
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for words in _split(block, variables):
            while words and (assigned := ASSIGNMENT.fullmatch(words[0])):
                if len(words) == 1:
                    variables[assigned[1]] = assigned[2]
                words = words[1:]
            if words:
                found.append(words)
    return found


def _split(block: str, variables: dict[str, str]) -> Iterator[list[str]]:
    block = re.sub(r"<<'(\w+)'\n.*?\n\1\n", "\n", block, flags=re.DOTALL).replace("\\\n", " ")
    text = ""
    for line in block.splitlines():
        text += re.sub(r"(^|\s)#.*", "", line) + "\n"
        text = re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), text)
        try:
            words = shlex.split(text)
        except ValueError:  # a quotation that goes on in the next line
            continue
        text = ""
        yield words
    assert not text, f"a quotation without its end: {text}"


def options(words: Sequence[str]) -> dict[str, Any]:
    """``--key value`` as a dictionary, with the values that Fire gives them."""
    given: dict[str, Any] = {}
    for word, following in itertools.pairwise([*words, ""]):
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            try:
                given[key] = ast.literal_eval(value or following)
            except (ValueError, SyntaxError):
                given[key] = value or following
    return given


def files(value: Any) -> list[str]:
    """Configuration files that are in the repository; others are the reader's own."""
    named = [value] if isinstance(value, str) else list(value)
    return [str(ROOT / name) for name in named if name.startswith("bundles/")]


def check_bundle_run(words: Sequence[str]) -> None:
    given = options(words)
    configs = files(given.pop("config_file"))
    assert configs
    assert [path for path in configs if not Path(path).is_file()] == []
    BundleCall(configs, given).check_overrides()
    config = ConfigParser.load_config_files(configs)
    for key, value in given.items():
        assert _is_entry(config, key), f"{key} is nothing in {configs}"
        if isinstance(value, str) and value.startswith("@"):
            assert value[1:].split("#")[0] in config, f"--{key} {value}: there is no such entry"


def _is_entry(config: Any, path: str) -> bool:
    """Whether a path such as ``network_def#se`` leads to an entry, or to an argument of a component."""
    for name in path.split("#"):
        if isinstance(config, list):
            config = config[int(name)] if int(name) < len(config) else None
        elif isinstance(config, dict) and name in config:
            config = config[name]
        elif isinstance(config, dict) and "_target_" in config:
            target = pydoc.locate(ConfigComponent(config).resolve_module_name())
            return name in inspect.signature(target).parameters  # type: ignore[arg-type]
        else:
            return False
    return True


def check_export(words: Sequence[str]) -> None:
    given = options(words)
    configs = [*files(given["config_file"]), *files(given["meta_file"])]
    assert [path for path in configs if not Path(path).is_file()] == []
    assert "network_def" in words


def check_monai_attn(words: Sequence[str]) -> None:
    arguments = cli._parser().parse_args(words)
    if arguments.command == "check":
        default = ["inference" if arguments.input else "train"]
        overrides = dict(map(parse_override, arguments.set))
        read_bundle(find_bundle(f"{ROOT}/bundles/{arguments.bundle}"), arguments.config or default, overrides)


def check(words: Sequence[str]) -> bool:
    """Look at a command; whether it is one of this project."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), words[1]
    elif words[0] == "monai-attn":
        check_monai_attn(words[1:])
    elif "monai_attn" in words:
        check_monai_attn(words[words.index("monai_attn") + 1 :])
    elif "monai.bundle" in words and "…" not in words:
        action, *rest = words[words.index("monai.bundle") + 1 :]
        check_bundle_run(rest) if action == "run" else check_export(rest)
    else:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_options_of_a_pages_commands_exist(page):
    own = [words for words in commands(page) if check(words)]
    if page.name == "README.md":
        assert own


@pytest.mark.parametrize(
    "command",
    [
        f"python -m monai.bundle run --config_file {QUICK_START}/configs/training.json",
        f"python -m monai.bundle run --config_file {QUICK_START}/configs/train.json --epoch 3",
        f"python -m monai.bundle run --config_file {QUICK_START}/configs/train.json --network_def#filters 3",
        f"python -m monai.bundle run --config_file {QUICK_START}/configs/train.json --optimizer @adam",
        "python -m monai.bundle ckpt_export network_def --meta_file bundles/none.json --config_file bundles/none.json",
        "monai-attn phantom --output data",
        "monai-attn check hippocampus_mri_scse_segmentation --set epoch=3",
        "make nothing",
    ],
)
def test_the_check_of_commands_finds_what_does_not_exist(command):
    with pytest.raises((AssertionError, ValueError, SystemExit)):
        check(shlex.split(command))


def test_the_page_on_your_own_data_works_as_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    monkeypatch.chdir(tmp_path)
    small = {"network_def#features": 4, "device": "cpu"}
    for words in commands(ROOT / "docs" / "own_data.md"):
        if words[0] == "monai-attn":
            if words[1] == "synthesize":  # the reader's own files
                shutil.copytree("data/phantom/labels", "label_maps")
                shutil.copy("data/phantom/images/phantom_000.nii.gz", "image.nii.gz")
                shutil.copy("data/phantom/labels/phantom_000.nii.gz", "label.nii.gz")
            assert cli.main(words[1:]) == 0
        else:
            given = {**options(words), **small}
            if given.get("input") == "my_scans":
                shutil.copytree("data/phantom/images", "my_scans", dirs_exist_ok=True)
            if "epochs" in given:
                given |= {"epochs": 1}
            run(**given)
    assert len(list(Path("out/segmentation").glob("*_seg.nii.gz"))) == 6
    assert Path("out/evaluation/val_mean_dice_raw.csv").is_file()
    assert len(list(Path("synthetic/images").iterdir())) == 24
