# SPDX-License-Identifier: Apache-2.0
"""Run, load, apply and export bundles."""

from __future__ import annotations

import gc
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monai_attn.errors import CasesError, ConfigError, DataError, InputError, root_cause
from monai_attn.run.bundles import config_files, find_bundle, own_weights, read_entries

if TYPE_CHECKING:
    import numpy as np
    import torch
    from monai.bundle import ConfigParser
    from monai.data import MetaTensor

__all__ = ["export", "import_monai", "load", "report", "run_bundle", "segment", "with_images"]


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise user-fixable errors without MONAI's errors around them."""
    try:
        yield
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, (CasesError, InputError)):
            raise cause from None
        raise


def import_monai() -> None:
    """Import what a command needs, without the garbage collector, which would scan all modules again and again."""
    if "monai" not in sys.modules:
        gc.disable()
        try:
            import monai_attn.run.workflow  # noqa: F401

            gc.freeze()
        finally:
            gc.enable()


@_plain_errors()
def run_bundle(files: Sequence[Path], options: Mapping[str, Any]) -> None:
    """Run a bundle's configurations by :class:`monai_attn.run.Workflow`.

    Example:
        ``run_bundle(config_files(folder, "train"), {"bundle_root": str(folder), "dataset_dir": "data"})``
    """
    import_monai()
    from monai_attn.run.workflow import Workflow

    workflow = Workflow([str(file) for file in files], **options)
    workflow.initialize()
    workflow.run()
    workflow.finalize()


def report(error: BaseException) -> int:
    """Print a short error; return the exit code."""
    if isinstance(error, KeyboardInterrupt) and "monai_attn.run.session" not in sys.modules:  # still imports
        print("monai-attn: stopped by the user", file=sys.stderr)
        return 130
    if isinstance(error, InputError) and "torch" not in sys.modules:  # answered at once
        print(f"monai-attn: {error}", file=sys.stderr)
        return 2
    from monai_attn.run.session import report

    return report(error)


def with_images(
    files: Sequence[Path], options: Mapping[str, Any], inputs: Sequence[str], shard: str | None = None
) -> dict[str, Any]:
    """Return the options to segment these images.

    Args:
        files: configurations of the inference.
        options: its other options.
        inputs: files, folders and data sets, or the files of one image's channels if there are as many.
        shard: part of the images, such as ``"3/16"``, with a log and a manifest of its own.

    Raises:
        ConfigError: if there is no such part.
        DataError: if there is no image.
    """
    entries = read_entries(files)
    added: dict[str, Any] = {"input": inputs[0] if len(inputs) == 1 else list(inputs)}
    if len(inputs) > 1:
        import_monai()
        from monai_attn.data.datalist import find_images
        from monai_attn.run.workflow import with_model

        settings = with_model([str(path) for path in files], dict(options))[1]  # with those of the weights
        if len(inputs) != settings.get("in_channels", entries.get("in_channels", 1)):
            added["dataset#data"] = [case for path in inputs for case in find_images(path)]
    if shard:
        part, _, parts = shard.partition("/")
        if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
            raise ConfigError(f"--shard {shard}", "it is no part such as 3/16", "give K/N with K from 1 to N")
        name = f"inference_{part}_of_{parts}"
        manifest = next(i for i, part in enumerate(entries["handlers"]) if part["_target_"].endswith(".RunManifest"))
        added |= {"unfinished#shard": shard, f"handlers#{manifest}#name": name}
        added["initialize#0"] = entries["initialize"][0].replace("'inference'", f"'{name}'")
    return {**options, **added}


@_plain_errors()
def load(
    bundle: str | Path, *, checkpoint: str | Path | None = None, device: str = "cpu", **options: Any
) -> torch.nn.Module:
    """Return a bundle's network with its weights, in evaluation mode.

    Args:
        bundle: see :func:`monai_attn.run.bundles.find_bundle`.
        checkpoint: weights of your own; by default those that come with the bundle.
        device: where to put it.
        **options: entries of the bundle's configuration, such as ``structures=["liver"]``.

    Raises:
        ConfigError: if there is no such bundle or option, or it comes without weights.
        DataError: if the checkpoint cannot be used.

    Example:
        >>> load("hippocampus_mri_scse")(torch.rand(1, 1, 32, 48)).shape
        torch.Size([1, 3, 32, 48])
    """
    return _parsed(bundle, checkpoint, device, options).get_parsed_content("network")


@_plain_errors()
def segment(
    bundle: str | Path,
    image: str | Path | Sequence[str | Path] | np.ndarray | torch.Tensor,
    *,
    spacing: Sequence[float] | None = None,
    affine: np.ndarray | torch.Tensor | None = None,
    attention: bool = False,
    checkpoint: str | Path | None = None,
    device: str = "cpu",
    **options: Any,
) -> MetaTensor | tuple[MetaTensor, dict[str, MetaTensor]]:
    """Segment an image like ``monai-attn segment``, without writing files.

    Args:
        bundle: see :func:`monai_attn.run.bundles.find_bundle`.
        image: a file, a DICOM folder, a file for each channel, or an array (C, *spatial) or (*spatial) in RAS order.
        spacing: voxel sizes of an array in mm (default: a ``MetaTensor``'s, else 1); for a file, the bundle's option.
        affine: affine of an array, instead of ``spacing``; by default that of a ``MetaTensor``.
        attention: whether to return the attention maps too.
        checkpoint: see :func:`monai_attn.load`.
        device: see :func:`monai_attn.load`.
        **options: see :func:`monai_attn.load`.

    Returns:
        The label map on the image's grid; with ``attention`` also the maps on that grid by the names of their gates.
        A picture with an EXIF orientation is read upright, and so is its label map.

    Raises:
        InputError: if the image, the bundle or an option cannot be used.

    Example:
        ``mask = monai_attn.segment("hippocampus_mri_scse", "scan.nii.gz")``
    """
    import torch
    from monai.data import list_data_collate
    from monai.transforms import Compose

    from monai_attn.data.datalist import find_image
    from monai_attn.handlers.evaluation import check_scores
    from monai_attn.run.workflow import components

    if spacing is not None and not hasattr(image, "shape"):
        options["spacing"] = spacing
    parser = _parsed(bundle, checkpoint, device, {**options, "save_attention": attention})
    names = "network", "preprocessing", "postprocessing", "evaluator#inferer", "amp"
    network, before, after, inferer, amp = map(parser.get_parsed_content, names)
    if isinstance(image, (str, Path)) or not hasattr(image, "shape"):
        case = before(find_image(image))
    else:
        case = Compose(before.transforms[1:])({"image": _as_image(image, spacing, affine, before.transforms)})
    with torch.no_grad(), torch.autocast("cuda", enabled=amp):
        case["pred"] = inferer(list_data_collate([case])["image"].to(device), network)[0].float()
    check_scores(case)
    steps = [step for step in after.transforms if "SaveImage" not in type(step).__name__]
    mask = Compose(steps)(case)["pred"]
    if not attention:
        return mask
    maps = components(parser, ["monai_attn.handlers.AttentionMaps"])[0]
    maps.amp = amp  # as if attached to the evaluator
    return mask, maps.compute(case["image"].to(device))


@_plain_errors()
def export(bundle: str | Path, file: str | Path, *, checkpoint: str | Path | None = None, **options: Any) -> None:
    """Export the network of a bundle.

    Args:
        bundle: see :func:`monai_attn.run.bundles.find_bundle`.
        file: ``.ts`` for TorchScript, ``.onnx`` for ONNX, ``.pt2`` for :func:`torch.export.save`.
        checkpoint: see :func:`monai_attn.load`.
        **options: see :func:`monai_attn.load`.

    Raises:
        ConfigError: if the ending is unknown, or the folder does not exist.

    Example:
        ``export("hippocampus_mri_scse", "model.onnx")``
    """
    folder, ending = find_bundle(bundle), Path(file).suffix
    metadata = folder / "configs" / "metadata.json"
    if ending not in (".ts", ".onnx", ".pt2"):
        raise ConfigError(str(file), "it has none of the endings .ts, .onnx, .pt2", "give one of these")
    if not Path(file).absolute().parent.is_dir():
        raise ConfigError(str(file), "there is no such folder", "make it, or give another file")
    import torch
    from monai.bundle import ckpt_export

    from monai_attn.run.workflow import with_model

    weights = own_weights(folder, checkpoint)
    if ending == ".ts":  # with the configurations, for others
        files = [str(path) for path in config_files(folder, "inference")]
        files, options = with_model(files, {**options, "checkpoint": weights})
        options |= {key: "$None" for key, value in options.items() if value is None}  # MONAI would leave it out
        given = {"ckpt_file": weights, "meta_file": str(metadata), "config_file": files, **options}
        with _quiet():
            ckpt_export(net_id="network_def", filepath=str(file), **given)
        return
    network = load(folder, checkpoint=checkpoint, **options)
    image = json.loads(metadata.read_text(encoding="utf-8"))["network_data_format"]["inputs"]["image"]
    channels = options.get("in_channels", image["num_channels"])
    example = torch.rand(2, channels, *[64] * len(image["spatial_shape"]))
    any_size = {axis: torch.export.Dim.AUTO for axis in range(example.ndim) if axis != 1}
    with _quiet(), torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=(any_size,))
        if ending == ".pt2":
            torch.export.save(program, file)
        else:
            options = {"input_names": ["image"], "output_names": ["pred"], "external_data": False, "verbose": False}
            torch.onnx.export(program, f=file, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the screen what an export tells its programmers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _parsed(bundle: str | Path, checkpoint: str | Path | None, device: str, options: Mapping[str, Any]) -> ConfigParser:
    """Return the inference of a bundle, whose network has its weights."""
    from monai_attn.run.workflow import read_bundle
    from monai_attn.weights import load_weights

    folder = find_bundle(bundle)
    weights = own_weights(folder, checkpoint)
    parser = read_bundle(folder, ["inference"], {**options, "checkpoint": weights, "device": device})
    network = parser.get_parsed_content("network")
    load_weights(network, weights)
    network.eval()
    return parser


def _as_image(image: Any, spacing: Sequence[float] | None, affine: Any, preprocessing: Sequence[Any]) -> MetaTensor:
    """Return an array as MetaTensor (C, *spatial)."""
    import numpy as np
    import torch
    from monai.data import MetaTensor

    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise DataError("the image", f"it is a {type(image).__name__}", "give a file, an array or a tensor")
    dims = next(step.spatial_dims for step in preprocessing if hasattr(step, "spatial_dims"))
    if image.ndim not in (dims, dims + 1):
        problem = f"it has {image.ndim} dimensions, expected {dims}, or {dims + 1} with channels first"
        raise DataError("the array", problem, "give (*spatial) or (C, *spatial)")
    if isinstance(image, np.ndarray):
        image = np.ascontiguousarray(image, dtype=np.float32)  # else torch refuses strides and byte orders
    if spacing is not None and (isinstance(image, MetaTensor) or np.size(spacing) not in (1, dims)):
        raise DataError("spacing", f"it is {spacing}", f"give {dims} numbers for an array; a MetaTensor has its own")
    if affine is None and not (spacing is None and isinstance(image, MetaTensor)):
        affine = np.eye(4)
        affine[range(dims), range(dims)] = 1.0 if spacing is None else spacing
    values = torch.as_tensor(image, dtype=torch.float32)
    return MetaTensor(values if image.ndim > dims else values[None], affine=affine)
