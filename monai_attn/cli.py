# SPDX-License-Identifier: Apache-2.0
"""The command ``monai-attn``, beside MONAI's bundle commands.

Heavy modules are imported when a command runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

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
        epilog=f"{_CHECK}{_PHANTOM.removeprefix('examples:')}{_EXIT_CODES}",
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
    return parser


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


def _make_phantom(arguments: argparse.Namespace) -> None:
    from monai_attn.data.phantom import make_phantom

    folder = make_phantom(arguments.bundle, arguments.out, cases=arguments.cases, seed=arguments.seed)
    print(f"{arguments.cases} made-up cases in {folder}; give it to the bundle with --dataset_dir {folder}")
