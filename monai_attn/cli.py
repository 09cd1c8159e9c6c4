# SPDX-License-Identifier: Apache-2.0
"""The command ``monai-attn``, beside MONAI's bundle commands.

Heavy modules are imported when a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import monai_attn
from monai_attn.errors import CasesError, InputError

__all__ = ["main"]

_CHECK = """examples:
  monai-attn check brain_mri_scse_segmentation --dataset_dir my_data
  monai-attn check brain_mri_scse_segmentation --input my_scans
  monai-attn check brats_mri_autofocus_segmentation --dataset_dir my_data --set in_channels=2
"""
_PHANTOM = """examples:
  monai-attn phantom brain_mri_scse_segmentation --out data/brain_phantom --cases 20
"""
_PREPARE = """examples:
  monai-attn prepare brain_mri_scse_segmentation malc_2012 -o data/malc
  monai-attn prepare brats_mri_autofocus_segmentation BRATS2015_Training -o data/brats --split test=54.txt unused=23.txt
"""
_EXIT_CODES = """
exit codes:
  0  everything was done
  1  an error that nobody foresaw, with its trace
  2  what was given cannot be used; three lines say what, why, and the fix
  130  stopped by the user
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code.

    It is 0, 2 for bad input (as in argparse), 130 if stopped by the user; ``argv`` defaults to that of the process.

    Example:
        ``main(["phantom", "hippocampus_mri_scse_segmentation", "--out", "data/phantom"])``
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (InputError, CasesError, KeyboardInterrupt) as error:
        from monai_attn.run.session import summarize

        message, code = summarize(error)
        print(f"monai-attn: {message}", file=sys.stderr)
        return code
    return 0


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="monai-attn",
        description=monai_attn.__doc__,
        epilog=f"{_CHECK}{_PHANTOM.removeprefix('examples:')}{_PREPARE.removeprefix('examples:')}{_EXIT_CODES}",
        formatter_class=style,
    )
    parser.add_argument("--version", action="version", version=f"monai-attn {monai_attn.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    summary = "Load every case of a data set and say which ones a bundle cannot use, and why."
    check = commands.add_parser(
        "check", help=summary, description=summary, epilog=_CHECK + _EXIT_CODES, formatter_class=style
    )
    check.set_defaults(run=_check)
    add = check.add_argument
    add("bundle", help="folder of the bundle, or the name of one in ./bundles")
    data = check.add_mutually_exclusive_group()
    data.add_argument("--dataset_dir", metavar="DIR", help="data set to train on (default: that of the bundle)")
    data.add_argument("--input", nargs="+", default=[], metavar="PATH", help="image, folder or data set to segment")
    add("--section", nargs="+", default=["training", "validation"], metavar="NAME", help="sections of the data set")
    add("--config", nargs="+", default=[], metavar="NAME", help="configurations (default: train, or inference)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides, as training or inference gets them")

    summary = "Write a look-alike of a bundle's data set: made-up spheres, for trying the software only."
    phantom = commands.add_parser(
        "phantom", help=summary, description=summary, epilog=_PHANTOM + _EXIT_CODES, formatter_class=style
    )
    phantom.set_defaults(run=_make_phantom)
    add = phantom.add_argument
    add("bundle", help="name of the bundle, such as hippocampus_mri_scse_segmentation")
    add("--out", required=True, metavar="DIR", help="folder to make")
    add("--cases", type=int, default=20, metavar="N", help="number of images (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="seed of the images (default: %(default)s)")

    summary = "Make the folder that a bundle trains on from the unpacked download of its paper's data set."
    prepare = commands.add_parser(
        "prepare",
        help=summary,
        description=summary,
        epilog=_PREPARE + _data_sets() + _EXIT_CODES,
        formatter_class=style,
    )
    prepare.set_defaults(run=_prepare)
    add = prepare.add_argument
    add("bundle", help="name of the bundle, or an unambiguous part of it")
    add("downloaded", help="folder of the unpacked download")
    add("-o", "--out", required=True, metavar="DIR", help="folder to make, which refers to the images of the download")
    text = "files with the names of cases, one a line: training, validation, test, or any other word to leave them out"
    add("--split", nargs="+", default=[], metavar="SECTION=FILE", help=text)
    return parser


def _data_sets() -> str:
    """Return the data sets of the bundles as lines of a help text."""
    table = json.loads((Path(__file__).parent / "data/sources.json").read_text(encoding="utf-8"))
    lines = ["\ndata sets:"]
    for bundle, sources in table.items():
        text = sources if isinstance(sources, str) else " or ".join(source["name"] for source in sources)
        lines.append(f"  {bundle}: {text}")
    return "\n".join([*lines, ""])


def _check(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from monai_attn.run.workflow import check_bundle

    lines = check_bundle(
        arguments.bundle,
        dataset_dir=arguments.dataset_dir,
        images=arguments.input,
        sections=arguments.section,
        configs=arguments.config,
        overrides=arguments.set,
    )
    for line in lines:
        with tqdm.external_write_mode():  # the progress bar steps aside
            print(line, flush=True)


def _prepare(arguments: argparse.Namespace) -> None:
    from monai_attn.data.prepare import prepare
    from monai_attn.errors import DataError

    sections: dict[str, str] = {}
    for option in arguments.split:
        section, _, path = option.partition("=")
        try:
            sections |= dict.fromkeys(Path(path).read_text(encoding="utf-8").split(), section)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(option, f"it cannot be read: {error}", "give SECTION=FILE, a name in each line") from error
    for line in prepare(arguments.bundle, Path(arguments.downloaded), Path(arguments.out), sections):
        print(line, flush=True)


def _make_phantom(arguments: argparse.Namespace) -> None:
    from monai_attn.data.phantom import make_phantom

    folder = make_phantom(arguments.bundle, arguments.out, cases=arguments.cases, seed=arguments.seed)
    print(f"{arguments.cases} made-up cases in {folder}; give it to the bundle with --dataset_dir {folder}")
