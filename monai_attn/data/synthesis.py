# SPDX-License-Identifier: Apache-2.0
"""Images made from label maps, to train on where labels are at hand and images are not.

The idea is SynthSeg's (Billot et al., Medical Image Analysis 2023, https://arxiv.org/abs/2107.09559, Sec. 3): every
structure gets random intensities, then come blur, a bias field and noise. Here the intensities are drawn around those
of a real image with labels, so that the contrast stays that of its modality.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation, SaveImage
from tqdm import tqdm

from monai_attn.data.datalist import case_name, find_images
from monai_attn.data.phantom.scanner import bias_field, blur
from monai_attn.errors import DataError

__all__ = ["intensity_statistics", "synthesize_dataset", "synthesize_image"]

_VALIDATION_FRACTION = 0.2
_CONTRAST_JITTER = 0.25  # deviation of a structure's mean among images, in units of the deviation within it


def intensity_statistics(image: torch.Tensor, label: torch.Tensor) -> dict[int, tuple[float, float]]:
    """Mean and standard deviation of an image (1, *spatial) in every structure of its label (1, *spatial).

    Example:
        >>> intensity_statistics(torch.tensor([[7.0, 1.0, 3.0]]), torch.tensor([[0, 2, 2]]))
        {2: (2.0, 1.4142135381698608)}
    """
    values = {int(value): image[label == value].float() for value in label.unique()}
    return {value: (float(inside.mean()), float(inside.std())) for value, inside in values.items() if value > 0}


def synthesize_image(
    label: torch.Tensor, statistics: dict[int, tuple[float, float]], rng: np.random.RandomState
) -> torch.Tensor:
    """Draw an image for a label map.

    Outside all structures there is a rim of fluid, one to four voxels wide, and then nothing, as in skull-stripped
    MRI.

    Args:
        label: label map (1, *spatial) of class indices.
        statistics: mean and deviation of each class, as :func:`intensity_statistics` gives them.
        rng: source of randomness.

    Returns:
        the image (1, *spatial), float32, not negative.

    Raises:
        ValueError: if the label has a class without statistics.

    Example:
        >>> label = torch.ones(1, 8, 8, 8)
        >>> synthesize_image(label, {1: (100.0, 5.0)}, np.random.RandomState(0)).shape
        torch.Size([1, 8, 8, 8])
    """
    classes = label.long()
    unknown = set(classes.unique().tolist()) - {0, *statistics}
    if unknown:
        raise ValueError(f"label has the classes {sorted(unknown)}, of which statistics says nothing.")
    low_mean, low_deviation = min(statistics.values())
    means = torch.zeros(max(statistics) + 1)
    deviations = torch.zeros(max(statistics) + 1)
    for value, (level, spread) in statistics.items():
        means[value] = level + _CONTRAST_JITTER * spread * rng.randn()
        deviations[value] = spread
    reach = int(rng.randint(1, 5))
    rim = F.max_pool3d((classes > 0).float()[None], 2 * reach + 1, stride=1, padding=reach)[0] > 0
    mean, deviation = means[classes], deviations[classes]
    fluid = rim & (classes == 0)
    mean[fluid], deviation[fluid] = low_mean, low_deviation
    texture = mean + deviation * torch.as_tensor(rng.randn(*classes.shape), dtype=torch.float32)
    image = bias_field(blur(texture, float(rng.uniform(0.4, 0.8))), rng, strength=0.05)
    return torch.as_tensor(image).clamp(min=0) * rim


def synthesize_dataset(
    labels: str | Path, folder: str | Path, *, like: Sequence[str | Path], copies: int = 1, seed: int = 0
) -> Path:
    """Write a data set of synthesised images and their labels; the real case is among the training cases.

    On a terminal there is a progress bar.

    Args:
        labels: folder of label maps.
        folder: folder to make; an existing ``dataset.json`` in it is not overwritten.
        like: image and label of the real case whose intensities are imitated.
        copies: number of images for each label map.
        seed: seed of the images.

    Returns:
        the folder.

    Raises:
        DataError: if there are no label maps, a label map has a class that the real case lacks, or the folder holds a
            data set.

    Example:
        ``synthesize_dataset("label_maps", "synthetic", like=["image.nii.gz", "label.nii.gz"], copies=4)``
    """
    folder = Path(folder)
    listing = folder / "dataset.json"
    if listing.exists():
        raise DataError(str(folder), "it holds a data set already", "give another folder")
    image, label = (_load(path) for path in like)
    statistics = intensity_statistics(image.as_tensor(), label.as_tensor())
    maps = find_images(labels)
    items = []
    paths = [item["image"] for item in maps for _ in range(copies)]
    for index, path in enumerate(tqdm(paths, "synthesize", leave=False, unit="image", disable=None)):
        rng = np.random.RandomState([seed, index])
        truth = _load(path)
        try:
            drawn = synthesize_image(truth.as_tensor(), statistics, rng)
        except ValueError as error:
            raise DataError(path, str(error), "give a real case with all structures") from error
        name = f"{case_name(path)}_{index % copies}"
        for kind, volume, dtype in (("images", drawn, np.float32), ("labels", truth.as_tensor(), np.uint8)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            SaveImage(output_ext=".nii.gz", output_dtype=dtype, writer="NibabelWriter", print_log=False)(
                MetaTensor(volume, affine=truth.affine), filename=str(folder / kind / name)
            )
        items.append({"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"})
    held_out = max(1, round(_VALIDATION_FRACTION * len(maps))) * copies
    real = dict(zip(("image", "label"), (str(Path(path).absolute()) for path in like)))
    content = {
        "name": "images synthesised from label maps",
        "description": f"intensities like those of {case_name(like[0])}, which is the first training case",
        "modality": {"0": "synthetic"},
        "labels": {str(value): str(value) for value in (0, *statistics)},
        "training": [real, *items[:-held_out]],
        "validation": items[-held_out:],
    }
    listing.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return folder


def _load(path: str | Path) -> MetaTensor:
    image = LoadImage(image_only=True, ensure_channel_first=True)(str(path))
    return cast(MetaTensor, Orientation(axcodes="RAS", labels=None)(image))
