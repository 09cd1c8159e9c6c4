# SPDX-License-Identifier: Apache-2.0
"""The command ``monai-attn``: what users need beside the bundles' own command line.

A subcommand is an entry of ``_COMMANDS``; it imports what it needs when it runs, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import monai_attn
from monai_attn.errors import CasesError, InputError

__all__ = ["main"]


class _Command(NamedTuple):
    """A subcommand: a line about it, a function that adds its arguments, one that runs it, and calls to show."""

    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]
    examples: tuple[str, ...] = ()


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: the arguments; by default those of the process.

    Returns:
        0, or what :mod:`monai_attn.run` has for the error, which is told on stderr: 2 (as argparse has it) if what
        the user gave cannot be used, 3 if parts have no result, 130 if the user stopped it.

    Example:
        ``main(["phantom", "hippocampus_mri_scse_segmentation", "--out", "data/phantom"])``
    """
    arguments = _parser().parse_args(argv)
    try:
        _COMMANDS[arguments.command].run(arguments)
    except (InputError, CasesError, KeyboardInterrupt) as error:
        from monai_attn.run.start import summarize

        message, code = summarize(error)
        print(f"monai-attn: {message}", file=sys.stderr)
        return code
    return 0


_EXIT_CODES = """exit codes:
  0  everything was done
  1  an error that nobody foresaw, with its trace
  2  what was given cannot be used; three lines say what, why, and the fix
  130  stopped by the user"""


def _epilog(examples: Sequence[str]) -> str:
    return "\n".join(["examples:", *(f"  {example}" for example in examples), "", _EXIT_CODES])


def _parser() -> argparse.ArgumentParser:
    style = argparse.RawDescriptionHelpFormatter
    first_examples = [command.examples[0] for command in _COMMANDS.values() if command.examples]
    parser = argparse.ArgumentParser(
        prog="monai-attn", description=monai_attn.__doc__, epilog=_epilog(first_examples), formatter_class=style
    )
    parser.add_argument("--version", action="version", version=f"monai-attn {monai_attn.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in _COMMANDS.items():
        subparser = subparsers.add_parser(
            name,
            help=command.summary,
            description=command.summary,
            epilog=_epilog(command.examples),
            formatter_class=style,
        )
        command.add_arguments(subparser)
    return parser


def _add_phantom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="name of the bundle, such as hippocampus_mri_scse_segmentation")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--cases", type=int, default=20, metavar="N", help="number of images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the images (default: %(default)s)")


def _make_phantom(arguments: argparse.Namespace) -> None:
    from monai_attn.data.phantom import make_phantom

    folder = make_phantom(arguments.bundle, arguments.out, cases=arguments.cases, seed=arguments.seed)
    print(f"{arguments.cases} made-up cases in {folder}; give it to the bundle with --dataset_dir {folder}")


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", help="folder of the bundle, or the name of one in ./bundles")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--dataset_dir", metavar="DIR", help="data set to train on (default: that of the bundle)")
    data.add_argument(
        "--input",
        nargs="+",
        default=[],
        metavar="PATH",
        help="what to segment: an image, a folder or a data set, or the files of one image",
    )
    parser.add_argument(
        "--section",
        nargs="+",
        default=["training", "validation"],
        metavar="NAME",
        help="sections of the data set (default: training validation)",
    )
    parser.add_argument(
        "--config",
        nargs="+",
        default=[],
        metavar="NAME",
        help="configurations of the bundle (default: train, or inference for --input)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="overrides, as training or inference gets them (default: none)",
    )


def _check(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from monai_attn.run.bundle import check_bundle

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


_COMMANDS = {
    "check": _Command(
        "Load every case of a data set and say which ones a bundle cannot use, and why.",
        _add_check_arguments,
        _check,
        (
            "monai-attn check brain_mri_scse_segmentation --dataset_dir my_data",
            "monai-attn check brain_mri_scse_segmentation --input my_scans",
            "monai-attn check brats_mri_autofocus_segmentation --dataset_dir my_data --set in_channels=2",
        ),
    ),
    "phantom": _Command(
        "Write a look-alike of a bundle's data set: made-up spheres, for trying the software only.",
        _add_phantom_arguments,
        _make_phantom,
        ("monai-attn phantom brain_mri_scse_segmentation --out data/brain_phantom --cases 20",),
    ),
}
