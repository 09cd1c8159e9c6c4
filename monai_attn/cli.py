# SPDX-License-Identifier: Apache-2.0
"""The command ``monai-attn``: run bundles by name.

Heavy modules are imported when a command runs, after its arguments, files and options are known to be right.
"""

from __future__ import annotations

import argparse
import difflib
import glob
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import monai_attn
from monai_attn.errors import ConfigError, DataError
from monai_attn.files import print_any_name
from monai_attn.run import api, bundles
from monai_attn.run.bundles import find_bundle
from monai_attn.run.options import parse_options, read_options

__all__ = ["main"]

_SEGMENT = """examples:
  monai-attn segment hippocampus_mri_scse scan.nii.gz -o out
  monai-attn segment hippocampus_mri_scse my_scans -o out --attention --table out/volumes.csv
  monai-attn segment brats_mri_egcnn t1.nii.gz t1c.nii.gz t2.nii.gz flair.nii.gz -o out --checkpoint model.pt
  monai-attn segment hippocampus_mri_scse my_scans -o out --shard 3/16
"""
_TRAIN = """examples:
  monai-attn train hippocampus_mri_scse -d my_data -o out
  monai-attn train hippocampus_mri_scse -d my_data -o out --structures liver spleen --epochs 50 --pretrained shipped
  monai-attn train kits_ct_egcnn -d kits19 -o out --config baselines --main_stream @unet
"""
_EVALUATE = """examples:
  monai-attn evaluate hippocampus_mri_scse -d my_data -o out --section test
  monai-attn evaluate hippocampus_mri_scse -d my_data -o out --checkpoint out/model.pt
"""
_PREPARE = """examples:
  monai-attn prepare kits_ct_egcnn kits19 -o data/kits
  monai-attn prepare brats_mri_autofocus BRATS2015 -o data/brats --split test=test_cases.txt
"""
_OPTIONS = """
Any entry of the bundle's configuration is an option too, such as --epochs 50 or --network_def#features 32;
`monai-attn info BUNDLE` lists them.
"""
_EXIT_CODES = """
exit codes:
  0  everything was done
  1  an error that nobody foresaw, with its trace
  2  what was given cannot be used; at most four lines say what, why, and the fix
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
    """Run a command; return its exit code.

    ``argv`` defaults to the arguments of the process.

    Example:
        ``main(["phantom", "hippocampus_mri_scse", "-o", "data/phantom"])``
    """
    print_any_name()
    try:
        arguments, others = _parser().parse_known_args(argv)
        if others and not arguments.takes_options:
            raise ConfigError(others[0], f"`monai-attn {arguments.command}` has no such option", "see its --help")
        arguments.options = read_options(others)
        arguments.run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        return api.report(error)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="monai-attn",
        description=monai_attn.__doc__,
        epilog=_SEGMENT + _TRAIN.removeprefix("examples:\n") + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"monai-attn {monai_attn.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def command(
        run: Callable[[argparse.Namespace], None], summary: str, epilog: str = "examples:\n  monai-attn list\n",
        *, output: str = "", bundle: bool = True, options: bool = False,
    ) -> Callable[..., Any]:  # fmt: skip
        sub = commands.add_parser(
            run.__name__.strip("_"), help=summary, description=summary, allow_abbrev=False,
            epilog=epilog + _OPTIONS * options + _EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        sub.set_defaults(run=run, takes_options=options)
        if bundle:
            sub.add_argument("bundle", help="folder of a bundle, its name, or an unambiguous part of its name")
        if output:
            sub.add_argument("-o", "--out", "--output_dir", required=True, metavar="DIR", help=output)
        if options:
            sub.add_argument("--show", action="store_true", help="print the equivalent command of MONAI, and end")
            sub.add_argument(
                "--config", nargs="+", default=[], metavar="NAME", help="more configurations of the bundle"
            )
            sub.add_argument("--checkpoint", metavar="FILE", help="weights (default: those that come with the bundle)")
        return sub.add_argument

    command(_list, "List the bundles, with paper, task, modality, weights and data set.", bundle=False)
    info = "Show a bundle: what it segments, labels, expected input, and its options with defaults."
    add = command(_info, info, "examples:\n  monai-attn info hippocampus_mri_scse\n")
    add("--checkpoint", metavar="FILE", help="weights of a training, whose options and scores are shown too")
    add = command(
        _segment, "Segment images.", _SEGMENT, output="folder for masks, pictures, report and log", options=True
    )
    add("input", nargs="*", help="image, folder, glob, DICOM folder, data set, or a file for each channel")
    add("--attention", action="store_true", help="save attention maps too")
    add("--dicom_seg", action="store_true", help="save a DICOM SEG of each DICOM series too (extra dicom)")
    add("--table", metavar="FILE", help="write the volumes of all finished cases as CSV; alone, without images")
    add("--shard", metavar="K/N", help="segment the K-th of N parts, for independent workers on one output folder")
    add = command(_train, "Train a bundle.", _TRAIN, output="folder for weights, curves and log", options=True)
    add("-d", "--dataset_dir", required=True, metavar="DATA", help="data set to train on")
    add = command(_evaluate, "Score a bundle's weights.", _EVALUATE, output="folder for tables and log", options=True)
    add("-d", "--dataset_dir", required=True, metavar="DATA", help="data set with labels")
    add("--section", "--val_section", metavar="NAME", help="section of the data set (default: validation)")
    add = command(
        _check,
        "Load every case and say which ones a bundle cannot use, and why.",
        "examples:\n  monai-attn check brain_mri_scse -d my_data\n  monai-attn check brain_mri_scse my_scans\n",
        options=True,
    )
    add("input", nargs="*", help="images to segment, instead of a data set to train on")
    add("-d", "--dataset_dir", metavar="DATA", help="data set to train on (default: that of the bundle)")
    add("--section", nargs="+", default=["training", "validation"], metavar="NAME", help="sections of the data set")
    summary = "Write a look-alike of a bundle's data set: made-up spheres, for trying the software only."
    add = command(
        _phantom,
        summary,
        "examples:\n  monai-attn phantom brain_mri_scse -o data/brain_phantom --cases 20\n",
        output="folder to make",
    )
    add("--cases", type=int, default=20, metavar="N", help="number of images (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="seed of the images (default: %(default)s)")
    summary = "Make the folder that a bundle trains on from the unpacked download of its paper's data set."
    add = command(_prepare, summary, _PREPARE + _data_sets(), output="folder to make, which refers to the download")
    add("downloaded", help="folder of the unpacked download")
    text = "files with the names of cases, one a line: training, validation, test, or any other word to leave them out"
    add("--split", nargs="+", default=[], metavar="SECTION=FILE", help=text)
    add = command(
        _export,
        "Export a bundle's network.",
        "examples:\n  monai-attn export hippocampus_mri_scse model.onnx\n",
        options=True,
    )
    add("file", help="file to write: .ts (TorchScript), .onnx or .pt2 (torch.export)")
    add = command(
        _copy,
        "Copy a bundle, to make one of your own.",
        "examples:\n  monai-attn copy hippocampus_mri_scse my_bundle\n",
    )
    add("folder", help="folder to make")
    return parser


def _prepared(arguments: argparse.Namespace, kind: str, **own: Any) -> tuple[list[Path], dict[str, Any]]:
    """Return configurations and checked options of a run, ``own`` ones among them unless they are None."""
    folder = find_bundle(arguments.bundle)
    files = bundles.config_files(folder, kind, arguments.config)
    _check_there(own.get("dataset_dir"))
    given = parse_options(arguments.options, bundles.read_entries(files))
    return files, {"bundle_root": str(folder), **{key: own[key] for key in own if own[key] is not None}, **given}


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
    print(*bundles.table(), sep="\n")


def _info(arguments: argparse.Namespace) -> None:
    _check_there(arguments.checkpoint)
    print(*bundles.describe(find_bundle(arguments.bundle), arguments.checkpoint), sep="\n")


def _segment(arguments: argparse.Namespace) -> None:
    folder = find_bundle(arguments.bundle)
    if not arguments.input and not arguments.table:
        raise ConfigError("the input", "there is none", "give an image, a folder, or the files of the channels")
    if arguments.input:
        inputs = [path for word in arguments.input for path in (sorted(glob.glob(word)) or [word])]
        _check_there(*inputs)
        files, options = _prepared(
            arguments, "inference", output_dir=arguments.out, save_attention=arguments.attention or None,
            dicom_seg=arguments.dicom_seg or None,
            checkpoint=bundles.own_weights(folder, arguments.checkpoint),
        )  # fmt: skip
        _run(arguments, *api.with_images(files, options, inputs, arguments.shard))
    if arguments.table and not arguments.show:
        from monai_attn.run.report import write_table

        write_table(arguments.out, arguments.table)


def _train(arguments: argparse.Namespace) -> None:
    places = dict.fromkeys(("output_dir", "ckpt_dir"), arguments.out)
    _run(arguments, *_prepared(arguments, "train", dataset_dir=arguments.dataset_dir, **places))


def _evaluate(arguments: argparse.Namespace) -> None:
    checkpoint = bundles.own_weights(find_bundle(arguments.bundle), arguments.checkpoint)
    own = {"dataset_dir": arguments.dataset_dir, "output_dir": arguments.out, "val_section": arguments.section}
    _run(arguments, *_prepared(arguments, "evaluate", checkpoint=checkpoint, **own))


def _check(arguments: argparse.Namespace) -> None:
    kind = "inference" if arguments.input else "train"
    own = {"dataset_dir": arguments.dataset_dir, "checkpoint": arguments.checkpoint if arguments.input else None}
    files, options = _prepared(arguments, kind, **own)
    from tqdm import tqdm

    from monai_attn.run.workflow import check_bundle

    own = {"configs": [file.stem for file in files], "sections": arguments.section, "overrides": options}
    for line in check_bundle(str(files[0].parents[1]), images=arguments.input, **own):
        with tqdm.external_write_mode():  # the progress bar steps aside
            print(line, flush=True)


def _phantom(arguments: argparse.Namespace) -> None:
    name = find_bundle(arguments.bundle).name
    from monai_attn.data.phantom import make_phantom

    folder = make_phantom(name, arguments.out, cases=arguments.cases, seed=arguments.seed)
    print(f"{arguments.cases} made-up cases in {folder}; next: monai-attn train {name} -d {folder} -o out")


def _data_sets() -> str:
    """Return the data sets of the bundles as lines of a help text."""
    table = json.loads((Path(__file__).parent / "data/sources.json").read_text(encoding="utf-8"))
    texts = {
        name: found if isinstance(found, str) else " or ".join(s["name"] for s in found)
        for name, found in table.items()
    }
    return "\ndata sets:\n" + "".join(f"  {name}: {text}\n" for name, text in texts.items())


def _prepare(arguments: argparse.Namespace) -> None:
    name = find_bundle(arguments.bundle).name
    sections: dict[str, str] = {}
    for option in arguments.split:
        section, _, path = option.partition("=")
        try:
            sections |= dict.fromkeys(Path(path).read_text(encoding="utf-8").split(), section)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(option, f"it cannot be read: {error}", "give SECTION=FILE, a name in each line") from error
    from monai_attn.data.prepare import prepare

    for line in prepare(name, Path(arguments.downloaded), Path(arguments.out), sections):
        print(line, flush=True)


def _export(arguments: argparse.Namespace) -> None:
    folder = find_bundle(arguments.bundle)
    _, options = _prepared(arguments, "inference")
    api.export(folder, arguments.file, checkpoint=arguments.checkpoint, **options)
    print(f"written: {arguments.file}")


def _copy(arguments: argparse.Namespace) -> None:
    target = bundles.copy_bundle(find_bundle(arguments.bundle), Path(arguments.folder))
    print(f"written: {target}; next: monai-attn info {target}")
