# SPDX-License-Identifier: Apache-2.0
"""The commands in README, documentation and model cards: their files and options exist, and the cheap ones run."""

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
import torch
from monai.bundle import ConfigComponent, ConfigParser, run

from monai_attn import cli
from monai_attn.errors import ConfigError
from monai_attn.run.bundles import config_files, find_bundle, read_entries
from monai_attn.run.options import _TRACKING

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/README.md")])
QUICK_START = "bundles/hippocampus_mri_scse_segmentation"
ASSIGNMENT = re.compile(r"""^([A-Z_]+)=("[^"]*"|\S*)$""", re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """Return the commands of a page's ``bash`` blocks as words, with the variables that the page sets put in."""
    variables = {"BUNDLE": f"bundles/{page.parents[1].name}" if page.parents[2].name == "bundles" else QUICK_START}

    def expand(text: str) -> str:
        return re.sub(r"\$(\w+)", lambda name: variables.get(name[1], name[0]), text)

    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
        text = re.sub(r"<<'(\w+)'\n.*?\n\1\n", "\n", block.replace("\\\n", " "), flags=re.DOTALL)
        text = re.sub(r"(^|[ \t])#.*", "", text, flags=re.MULTILINE)
        for name, value in ASSIGNMENT.findall(text):
            variables[name] = expand(value.strip('"'))
        lexer = shlex.shlex(expand(ASSIGNMENT.sub("", text)), posix=True, punctuation_chars="\n;&|")
        lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
        for between, words in itertools.groupby(lexer, lambda word: bool(word) and set(word) <= set("\n;&|")):
            if not between:
                yield list(itertools.dropwhile(re.compile(r"[A-Z_]+=").match, words))


def options(words: Sequence[str]) -> dict[str, Any]:
    """Return ``--key value`` as a dictionary, with the values that Fire gives them."""
    given: dict[str, Any] = {}
    for word, following in itertools.pairwise([*words, ""]):
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            try:
                given[key] = ast.literal_eval(value or following)
            except (ValueError, SyntaxError):
                given[key] = value or following
    return given


def configuration(*names: Any) -> dict[str, Any]:
    """Read the files of a command that are in the repository; others are the reader's own."""
    listed = [name for named in names for name in ([named] if isinstance(named, str) else named)]
    files = [ROOT / name for name in listed if name.startswith("bundles/")]
    assert files
    assert all(path.is_file() for path in files), files
    return ConfigParser.load_config_files([str(path) for path in files])


def is_entry(config: Any, path: str) -> bool:
    """Return whether a path such as ``network_def#se`` leads to an entry, or to an argument of a component."""
    config = {**_TRACKING, **config} if isinstance(config, dict) else config  # which MONAI takes besides
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


def check(words: Sequence[str]) -> bool:
    """Look at a command; return whether it is one of this project."""
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), words[1]
    elif own := {"monai-attn", "monai_attn"}.intersection(words):
        arguments, others = cli._parser().parse_known_args(words[words.index(own.pop()) + 1 :])
        assert arguments.takes_options or not others, others
        if hasattr(arguments, "bundle"):
            bundle = find_bundle(arguments.bundle)
            kind = "train" if arguments.command in ("train", "evaluate", "check") else "inference"
            config = read_entries(config_files(bundle, kind, getattr(arguments, "config", ())))
            assert all(is_entry(config, word[2:].split("=")[0]) for word in others if word.startswith("--")), others
    elif "monai.bundle" in words and "…" not in words:
        given = options(words[words.index("monai.bundle") :])
        if "run" in words:
            config = configuration(given.pop("config_file"))
            for key, value in given.items():
                assert is_entry(config, key), f"{key} is nothing in the configuration"
                if isinstance(value, str) and value.startswith("@"):
                    assert is_entry(config, value[1:]), f"--{key} {value}: there is no such entry"
            if any(key.startswith("network_def") and "jit.load" not in str(given[key]) for key in given):
                parser = ConfigParser(config)
                parser.update(given)
                with torch.device("meta"):
                    parser.get_parsed_content("network_def")
        else:
            assert "network_def" in configuration(given["config_file"], given["meta_file"])
    else:
        return False
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_options_of_a_pages_commands_exist(page):
    own = [words for words in commands(page) if check(words)]
    assert own or page.name != "README.md"


@pytest.mark.parametrize(
    "command",
    [
        f"python -m monai.bundle run --config_file {QUICK_START}/configs/training.json",
        f"python -m monai.bundle run --config_file {QUICK_START}/configs/train.json --epoch 3",
        f"python -m monai.bundle run --config_file {QUICK_START}/configs/train.json --optimizer @adam",
        f"python -m monai.bundle run --config_file {QUICK_START}/configs/train.json --network_def#skip none",
        "monai-attn check hippocampus_mri_scse --epoch 3",
        "monai-attn copy hipocampus_mri_scse there",
        "make nothing",
    ],
)
def test_the_check_of_commands_finds_what_does_not_exist(command):
    with pytest.raises((AssertionError, ConfigError, RuntimeError)):
        check(shlex.split(command))


def test_the_page_on_your_own_data_works_as_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    monkeypatch.chdir(tmp_path)
    small = {"network_def#features": 4, "device": "cpu"}
    for words in commands(ROOT / "docs" / "own_data.md"):
        if words[0] == "monai-attn":
            quick = ["--epochs", "1", "--network_def#features", "4"] if words[1] == "train" else []
            assert cli.main([*words[1:], *quick]) == 0
        else:
            given = {**options(words), **small}
            if given.get("input") == "my_scans":
                shutil.copytree("data/phantom/images", "my_scans", dirs_exist_ok=True)
            if "epochs" in given:
                given |= {"epochs": 1}
            run(**given)
    assert len(list(Path("out/segmentation").glob("*_seg.nii.gz"))) == 6
    assert Path("out/evaluation/val_mean_dice_raw.csv").is_file()
