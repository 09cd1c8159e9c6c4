# SPDX-License-Identifier: Apache-2.0
"""The command ``monai-attn``: run bundles by name.

Heavy modules are imported when a command runs, after its arguments, files and options are known to be right.
"""

from __future__ import annotations

import argparse
import difflib
import glob
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any, NoReturn

import monai_attn
from monai_attn.errors import CasesError, ConfigError, DataError
from monai_attn.files import print_any_name
from monai_attn.run import api, bundles
from monai_attn.run.options import parse_options, read_options

__all__ = ["main"]

_Command = Callable[[argparse.Namespace], None]
_OPTIONS = """
Any entry of the bundle's configuration is an option too, such as --epochs 50 or --network_def#features 32;
`monai-attn info BUNDLE` lists them.
"""
_EXIT_CODES = """
exit codes:
  0  success
  1  an unexpected error, with its traceback
  2  an input or option cannot be used; at most four lines say what, why, and the fix
  3  some cases have no result
  130  stopped by the user
"""


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are short."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        if unknown := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            nearest = difflib.get_close_matches(unknown[1], re.findall(r"[\w]+", unknown[2]), n=1, cutoff=0.4)
            fix = f"did you mean {nearest[0]}?" if nearest else f"give one of {unknown[2]}"
            raise ConfigError(unknown[1], "there is no such command", fix)
        raise ConfigError(self.prog, message, f"see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, by default that of the process; return its exit code.

    Example:
        ``main(["phantom", "hippocampus_mri_scse", "-o", "data/phantom"])``
    """
    print_any_name()
    try:
        arguments, others = _parser().parse_known_args(argv)
        if others and not arguments.takes_options:
            raise ConfigError(others[0], f"`monai-attn {arguments.command}` has no such option", "see its --help")
        while "input" in arguments and others and not others[0].startswith("-"):  # behind an option
            arguments.input.append(others.pop(0))
        arguments.options = read_options(others)
        if "" in (argv if argv is not None else sys.argv[1:]):
            raise ConfigError("an empty argument", "it would mean the current folder", "is a variable not set?")
        if "bundle" in arguments:
            arguments.bundle = bundles.find_bundle(arguments.bundle)
        arguments.run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        return api.report(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    raw, epilog = argparse.RawDescriptionHelpFormatter, _examples(_segment, _train) + _EXIT_CODES
    parser = _Parser(prog="monai-attn", description=monai_attn.__doc__, epilog=epilog, formatter_class=raw)
    parser.add_argument("--version", action="version", version=f"monai-attn {monai_attn.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(run: _Command, more: str = "", output: str = "", bundle: bool = True, options: bool = False) -> Any:
        summary, epilog = _paragraphs(run)[0], _examples(run) + more + _OPTIONS * options + _EXIT_CODES
        texts: Any = {"help": summary, "description": summary, "epilog": epilog, "formatter_class": raw}
        sub = commands.add_parser(run.__name__.strip("_"), allow_abbrev=False, **texts)
        sub.set_defaults(run=run, takes_options=options, config=[])
        add = sub.add_argument
        if bundle:
            add("bundle", help="folder of a bundle, its name, or an unambiguous part of its name")
        if output:
            add("-o", "--out", "--output_dir", required=True, metavar="DIR", help=output)
        if options and output:
            add("--show", action="store_true", help="print the equivalent command of MONAI, and end")
        if options and run is not _export:
            add("--config", nargs="+", metavar="NAME", help="more configurations of the bundle")
        if options and run is not _train:  # which has --pretrained
            add("--checkpoint", metavar="FILE", help="weights (default: those that come with the bundle)")
        return add

    command(_list, bundle=False)
    add = command(_info)
    add("--checkpoint", metavar="FILE", help="weights of a training, whose options and scores are shown too")
    add = command(_segment, output="folder for masks, pictures, report and log", options=True)
    add("input", nargs="*", help="image, folder, glob, DICOM folder, data set, or a file for each channel")
    switch: Any = {"action": "store_true", "default": None}  # None leaves the entry of the bundle as it is
    add("--attention", help="save attention maps too", **switch)
    add("--dicom_seg", help="save a DICOM SEG of each DICOM series too (extra dicom)", **switch)
    add("--table", metavar="FILE", help="write the volumes of all finished cases as CSV; alone, without images")
    add("--shard", metavar="K/N", help="segment the K-th of N parts, for independent workers on one output folder")
    add = command(_train, output="folder for weights, curves and log", options=True)
    add("-d", "--dataset_dir", required=True, metavar="DATA", help="data set to train on")
    add = command(_evaluate, output="folder for tables and log", options=True)
    add("-d", "--dataset_dir", required=True, metavar="DATA", help="data set with labels")
    add("--section", "--val_section", metavar="NAME", help="section of the data set (default: validation)")
    add = command(_check, options=True)
    add("input", nargs="*", help="images to segment, instead of a data set to train on")
    add("-d", "--dataset_dir", metavar="DATA", help="data set to train on (default: that of the bundle)")
    add("--section", nargs="+", default=["training", "validation"], metavar="NAME", help="sections of the data set")
    add = command(_phantom, output="folder to make")
    add("--cases", type=int, default=20, metavar="N", help="number of images (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="seed of the images (default: %(default)s)")
    add = command(_prepare, bundles.data_sets(), output="folder to make, which refers to the download")
    add("downloaded", help="folder of the unpacked download")
    text = "files with the names of cases, one a line: training, validation, test, or any other word to leave them out"
    add("--split", nargs="+", default=[], metavar="SECTION=FILE", help=text)
    add = command(_export, options=True)
    add("file", help="file to write: .ts (TorchScript), .onnx or .pt2 (torch.export)")
    command(_copy)("folder", help="folder to make")
    return parser


def _paragraphs(run: _Command) -> list[str]:
    """Return the summary and the examples in the docstring of a command."""
    return (inspect.getdoc(run) or "").split("\n\n")


def _examples(*commands: _Command) -> str:
    return "examples:\n" + indent("\n".join(_paragraphs(run)[1] for run in commands), "  ") + "\n"


def _prepared(arguments: argparse.Namespace, kind: str, **own: Any) -> tuple[list[Path], dict[str, Any]]:
    """Return configurations and checked options of a run, ``own`` ones among them unless they are None."""
    files = bundles.config_files(arguments.bundle, kind, arguments.config)
    _check_there(own.get("dataset_dir"))
    given = parse_options(arguments.options, bundles.read_entries(files))
    own = {"bundle_root": str(arguments.bundle), **own}
    return files, {**{key: value for key, value in own.items() if value is not None}, **given}


def _check_there(*paths: str | None) -> None:
    for path in paths:
        if path is not None and not Path(path).exists():
            raise DataError(path, "there is no such file or folder", "give an image, a DICOM folder or a data set")


def _run(arguments: argparse.Namespace, files: Sequence[Path], options: Mapping[str, Any]) -> None:
    if arguments.show:
        print(bundles.show_command(files, options))
    else:
        api.run_bundle(files, options)


def _list(_: argparse.Namespace) -> None:
    """List the bundles, with paper, task, modality, weights and data set.

    monai-attn list
    """
    print(*bundles.table(), sep="\n")


def _info(arguments: argparse.Namespace) -> None:
    """Show a bundle: what it segments, labels, expected input, and its options with defaults.

    monai-attn info hippocampus_mri_scse
    """
    _check_there(arguments.checkpoint)
    print(*bundles.describe(arguments.bundle, arguments.checkpoint), sep="\n")


def _segment(arguments: argparse.Namespace) -> None:
    """Segment images.

    monai-attn segment hippocampus_mri_scse scan.nii.gz -o out
    monai-attn segment hippocampus_mri_scse my_scans -o out --attention --table out/volumes.csv
    monai-attn segment brats_mri_egcnn t1.nii.gz t1c.nii.gz t2.nii.gz flair.nii.gz -o out --checkpoint model.pt
    monai-attn segment hippocampus_mri_scse my_scans -o out --shard 3/16
    """
    if not arguments.input and not arguments.table:
        raise ConfigError("the input", "there is none", "give an image, a folder, or the files of the channels")
    failed = None
    if arguments.input:
        found = ((word, [] if Path(word).exists() else sorted(glob.glob(word))) for word in arguments.input)
        inputs = [path for word, paths in found for path in paths or [word]]
        _check_there(*inputs)
        own = {"output_dir": arguments.out, "save_attention": arguments.attention, "dicom_seg": arguments.dicom_seg}
        checkpoint = bundles.own_weights(arguments.bundle, arguments.checkpoint)
        files, options = _prepared(arguments, "inference", **own, checkpoint=checkpoint)
        try:
            _run(arguments, files, api.with_images(files, options, inputs, arguments.shard))
        except CasesError as error:
            failed = error
    if arguments.table and not arguments.show and (failed is None or failed.finished):
        from monai_attn.run.report import write_table

        write_table(arguments.out, arguments.table)
    if failed is not None:
        raise failed


def _train(arguments: argparse.Namespace) -> None:
    """Train a bundle.

    monai-attn train hippocampus_mri_scse -d my_data -o out
    monai-attn train hippocampus_mri_scse -d my_data -o out --structures liver spleen --epochs 50 --pretrained shipped
    monai-attn train kits_ct_egcnn -d kits19 -o out --config baselines --main_stream @unet
    """
    places = dict.fromkeys(("output_dir", "ckpt_dir"), arguments.out)
    _run(arguments, *_prepared(arguments, "train", dataset_dir=arguments.dataset_dir, **places))


def _evaluate(arguments: argparse.Namespace) -> None:
    """Score a bundle's weights.

    monai-attn evaluate hippocampus_mri_scse -d my_data -o out --section test
    monai-attn evaluate hippocampus_mri_scse -d my_data -o out --checkpoint out/model.pt
    """
    checkpoint = bundles.own_weights(arguments.bundle, arguments.checkpoint)
    own = {"dataset_dir": arguments.dataset_dir, "output_dir": arguments.out, "val_section": arguments.section}
    _run(arguments, *_prepared(arguments, "evaluate", checkpoint=checkpoint, **own))


def _check(arguments: argparse.Namespace) -> None:
    """List the cases that a bundle cannot use, and why.

    monai-attn check brain_mri_scse -d my_data
    monai-attn check brain_mri_scse my_scans
    """
    kind, checkpoint = ("inference", arguments.checkpoint) if arguments.input else ("train", None)
    files, options = _prepared(arguments, kind, dataset_dir=arguments.dataset_dir, checkpoint=checkpoint)
    api.import_monai()
    from tqdm import tqdm

    from monai_attn.run.workflow import check_bundle

    own = {"configs": [file.stem for file in files], "sections": arguments.section, "overrides": options}
    for line in check_bundle(str(files[0].parents[1]), images=arguments.input, **own):
        with tqdm.external_write_mode():  # the progress bar steps aside
            print(line, flush=True)


def _phantom(arguments: argparse.Namespace) -> None:
    """Write synthetic images of spheres in the format of a bundle's data set.

    monai-attn phantom brain_mri_scse -o data/brain_phantom --cases 20
    """
    from monai_attn.data.phantom import make_phantom

    folder = make_phantom(name := arguments.bundle.name, arguments.out, cases=arguments.cases, seed=arguments.seed)
    print(f"{arguments.cases} synthetic cases in {folder}; next: monai-attn train {name} -d {folder} -o out")


def _prepare(arguments: argparse.Namespace) -> None:
    """Turn the unpacked download of a bundle's data set into a folder to train on.

    monai-attn prepare kits_ct_egcnn kits19 -o data/kits
    monai-attn prepare brats_mri_autofocus BRATS2015 -o data/brats --split test=test_cases.txt
    """
    sections: dict[str, str] = {}
    for option in arguments.split:
        section, _, path = option.partition("=")
        try:
            sections |= dict.fromkeys(Path(path).read_text(encoding="utf-8").split(), section)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(option, f"it cannot be read: {error}", "give SECTION=FILE, a name in each line") from error
    from monai_attn.data.prepare import prepare

    for line in prepare(arguments.bundle.name, Path(arguments.downloaded), Path(arguments.out), sections):
        print(line, flush=True)


def _export(arguments: argparse.Namespace) -> None:
    """Export a bundle's network.

    monai-attn export hippocampus_mri_scse model.onnx
    """
    _, options = _prepared(arguments, "inference")
    api.export(arguments.bundle, arguments.file, checkpoint=arguments.checkpoint, **options)
    print(f"written: {arguments.file}")


def _copy(arguments: argparse.Namespace) -> None:
    """Copy a bundle, to customize it.

    monai-attn copy hippocampus_mri_scse my_bundle
    """
    target = bundles.copy_bundle(arguments.bundle, Path(arguments.folder))
    print(f"written: {target}; next: monai-attn info {target}")
