# SPDX-License-Identifier: Apache-2.0
"""Compute the values that tests/test_frozen.py compares; ``python tests/frozen/freeze.py`` writes them again.

The keys of the JSON files say what is computed: a call that builds a network, or a bundle and its overrides. A change
that is not meant to change a result leaves all values as they are; if it renames an argument, rename it in the keys.
"""

import base64
import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.networks.nets
import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser, run
from PIL import Image
from torch import nn

import monai_attn.adapt
import monai_attn.nets
from monai_attn.data import cases
from monai_attn.nets import AFNet, ASPPNet, DeepMedic, FocusNet, SqueezeExciteFCN

HERE = Path(__file__).parent
BUNDLES = {path.name: path for path in sorted((Path(monai_attn.__file__).parents[1] / "bundles").iterdir())}
KNOWN = {**vars(monai.networks.nets), **vars(monai_attn.adapt), **vars(monai_attn.nets)}


def frozen(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def build(call: str) -> nn.Module:
    return eval(call, KNOWN)


def files_of(bundle: str, *configs: str) -> list[str]:
    """Those of a bundle's configurations that there are."""
    files = [BUNDLES[bundle] / "configs" / f"{config}.json" for config in configs]
    return [str(file) for file in files if file.is_file()]


def parsed(bundle: str, *configs: str, **overrides: Any) -> ConfigParser:
    """A bundle's configuration for inference, and its baselines where those have a file of their own."""
    parser = ConfigParser()
    parser.read_config(files_of(bundle, "inference", *configs, "baselines"))
    parser.update({"bundle_root": str(BUNDLES[bundle]), "device": "cpu", **overrides})
    return parser


def noise(key: str, shape: Any) -> torch.Tensor:
    """Normal random numbers that depend on a name only; they begin again after 65,536."""
    size, period = math.prod(shape), 2**16
    few = torch.randn(min(size, period), generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    return few.repeat(math.ceil(size / period))[:size].reshape(shape)


@torch.no_grad()
def fill(network: nn.Module, salt: str = "") -> nn.Module:
    """Give a network weights that depend on its keys only, and set it to evaluation."""
    for key, value in network.state_dict().items():
        random = noise(salt + key, value.shape)
        if value.ndim >= 2:  # a kernel
            random *= (2 / value[0].numel()) ** 0.5
        elif key.endswith(("weight", "running_var")):  # of a normalization, or a slope
            random = 0.5 + 0.25 * random.abs()
        else:
            random *= 0.2
        if value.is_floating_point():
            value.copy_(random)
    return network.eval()


def image_for(network: nn.Module) -> torch.Tensor:
    """An image of a size that the network takes, odd if it takes any."""
    kernel = next(m.weight for m in network.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d)))
    takes_any = isinstance(network, (SqueezeExciteFCN, FocusNet, AFNet, ASPPNet, DeepMedic))
    sizes = [(37,), (33, 30), (7, 8, 9)] if takes_any else [(64,), (32, 32), (16, 16, 16)]
    return noise("image", (1, kernel.shape[1], *sizes[kernel.ndim - 3])).to(kernel.dtype)


def describe(network: nn.Module) -> dict[str, Any]:
    """Numbers of parameters and keys."""
    state = network.state_dict()
    keys = "\n".join(sorted(f"{key} {tuple(value.shape)}" for key, value in state.items()))
    count = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": count, "keys": len(state), "keys_sha256": hashlib.sha256(keys.encode()).hexdigest()}


@torch.no_grad()
def logits(network: nn.Module) -> list[float]:
    """Mean, standard deviation and eight values of segmentation and edges, in double precision."""
    network = fill(network).double()
    output = getattr(network, "forward_all", network)(image_for(network))
    flat = torch.cat([part.flatten() for part in (output[:2] if isinstance(output, tuple) else [output])])
    samples = flat[torch.linspace(0, len(flat) - 1, 8).long()]
    return [float(f"{value:.7g}") for value in (flat.mean(), flat.std(), *samples)]


def network_values(call: str) -> dict[str, Any]:
    """Counts, keys and logits of a network."""
    network = build(call)
    return {**describe(network), "logits": logits(network)}


def bundle_network_values(label: str) -> dict[str, Any]:
    """The same of a bundle's network for ``<bundle> <overrides>``; of large alternatives no logits."""
    bundle, overrides = label.split(" ", 1)

    def network() -> nn.Module:
        return parsed(bundle, **json.loads(overrides)).get_parsed_content("network_def")

    with torch.device("meta"):
        values = describe(network())
    return {**values, "logits": logits(network())} if overrides == "{}" or values["parameters"] < 2e6 else values


MOST = {"padded_size": 64, "crop_size": 32, "image_size": 64}  # along each axis


def write_image(folder: Path, size: list[int], low: float, high: float, channels: int) -> None:
    """Write a smooth image: a picture, or a volume on an oblique grid of PIR and uneven spacing."""
    grid = np.meshgrid(*(np.linspace(0, 1, side) for side in size), indexing="ij")
    waves = []
    for channel in range(channels):
        phases = [(7 + 3 * channel + 2 * axis) * along + axis for axis, along in enumerate(grid)]
        waves.append(0.5 + (sum(np.cos(phase) for phase in phases) + np.cos(sum(phases))) / (2 * len(size) + 2))
    image = (low + (high - low) * np.stack(waves, axis=-1)).round()
    if len(size) == 2:
        Image.fromarray(image.squeeze().astype(np.uint8)).save(folder / "a case.png")
        return
    if channels > 1:  # the skull was stripped
        image[sum((2.4 * along - 1.2) ** 2 for along in grid) > 1] = 0
    cos, sin = np.cos(0.2), np.sin(0.2)
    turned = [[cos, -sin, 0, -31.5], [sin, cos, 0, 12.25], [0, 0, 1, 40], [0, 0, 0, 1]]
    affine = turned @ np.array([[0, 0, 2.1, 0], [-0.9, 0, 0, 0], [0, -1.3, 0, 0], [0, 0, 0, 1]])
    volume = nibabel.Nifti1Image(image.squeeze().astype(np.int16), affine)
    volume.set_qform(affine, 1)
    volume.set_sform(affine, 2)
    nibabel.save(volume, folder / "a case.nii.gz")


def voxels_of(path: Path) -> np.ndarray:
    return np.ascontiguousarray(Image.open(path) if path.suffix == ".png" else nibabel.load(path).dataobj)


def segment(bundle: str, *overlays: str, **overrides: Any) -> list[Path]:
    """Run a bundle's inference on a CPU; returns the files."""
    common = {"bundle_root": str(BUNDLES[bundle]), "device": "cpu", "amp": False, "bf16": False}
    run(config_file=files_of(bundle, "inference", *overlays), **common, **overrides)
    return sorted(Path(overrides["output_dir"]).rglob("*_seg.*"))


def file_values(label: str) -> dict[str, Any]:
    """Segment an image by a bundle, ``<bundle> <second configuration>``: what is in the file, and where it lies."""
    bundle, *overlay = label.split(" ")
    parser, made = parsed(bundle, *overlay), frozen("files")[label]["made"]
    small = {key: [min(side, most) for side in parser[key]] for key, most in MOST.items() if key in parser}
    with tempfile.TemporaryDirectory() as temporary:
        folder, weights, out = (Path(temporary) / part for part in ("in", "model.pt", "out"))
        folder.mkdir()
        write_image(folder, **made["image"])
        torch.save(fill(parser.get_parsed_content("network_def"), made["weights"]).state_dict(), weights)
        files = {"input": str(folder), "checkpoint": str(weights), "output_dir": str(out)}
        (path,) = segment(bundle, *overlay, **files, **small)
        found: dict[str, Any] = {"made": made, "name": path.relative_to(out).as_posix()}
        if path.suffix != ".png":
            image = nibabel.load(path)
            forms = {"affine": image.affine, "qform": image.get_qform(), "sform": image.get_sform()}
            found |= {form: [round(float(value), 4) for value in matrix.ravel()] for form, matrix in forms.items()}
            found |= {code: int(image.header[code]) for code in ("qform_code", "sform_code")}
        voxels = voxels_of(path)
    found |= {"dtype": str(voxels.dtype), "shape": list(voxels.shape)}
    return {**found, "voxels": base64.b64encode(zlib.compress(voxels.tobytes(), 9)).decode()}


def mask_values(bundle: str, dataset_dir: Path) -> dict[str, Any]:
    """Segment three cases by a bundle's own weights: sha256 of each mask, and how often each value is in it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, out = Path(temporary) / "in", Path(temporary) / "out"
        folder.mkdir()
        for case in cases(dataset_dir, "validation")[:3]:
            shutil.copy(case["image"], folder)
        masks = {path.name: voxels_of(path) for path in segment(bundle, input=str(folder), output_dir=str(out))}
    return {name: [hashlib.sha256(mask).hexdigest(), *np.bincount(mask.flat).tolist()] for name, mask in masks.items()}


def key_values(label: str) -> dict[str, Any]:
    """The keys of ``<bundle>/<configuration>`` or its baselines and their values, ``"$"`` for expressions and parts."""
    bundle, config = label.split("/")
    entries: dict[str, Any] = {}
    for file in files_of(bundle, "baselines", config):
        entries |= json.loads(Path(file).read_text(encoding="utf-8"))
    texts = {key: json.dumps(value) for key, value in entries.items() if "#" not in key}
    return {
        key: "$" if any(sign in text for sign in ("$", "@", "_target_")) else entries[key]
        for key, text in texts.items()
    }


def main() -> None:
    """Write all values; those of the masks only with real data."""
    ways: dict[str, Callable[[str], Any]] = {
        "networks": network_values,
        "bundle_networks": bundle_network_values,
        "files": file_values,
        "keys": key_values,
    }
    if data := os.environ.get("MONAI_DATA_DIRECTORY"):
        ways["masks"] = lambda bundle: mask_values(bundle, Path(data) / "hippocampus")
    for name, compute in ways.items():
        lines = [f"{json.dumps(label)}: {json.dumps(compute(label))}" for label in frozen(name)]
        (HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
