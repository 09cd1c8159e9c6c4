# SPDX-License-Identifier: Apache-2.0
"""Make images like T1-weighted MRI from maps of 27 brain structures.

  python docs/reproduce/synthesize.py data/brain_aseg27 data/brain_synthetic 2

Every map of ``labels_only`` gets an image; the cases with a real image are added. With a 2 at the end, every
second voxel is kept in each direction.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy.ndimage import binary_closing, gaussian_filter, zoom

CSF = 0.2
# background, then structures 1 to 15: the left ones and those without a side
MEANS = np.array([0, 0.85, 0.6, CSF, 0.82, 0.58, 0.71, 0.62, 0.66, 0.76, CSF, CSF, 0.76, 0.58, 0.58, 0.74])
LEFT = [1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 14, 15]  # structures 16 to 27 are the right ones, in this order


def synthesize(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return an image in 8 bit: a mean for each structure, partial volumes, a bias field and noise."""
    means = MEANS + random.normal(0, 0.03, MEANS.shape) * (MEANS > 0)
    image = np.concatenate([means, means[LEFT]])[labels]
    brain = binary_closing(labels > 0, iterations=4)
    image[brain & (labels == 0)] = CSF
    image = gaussian_filter(image + random.normal(0, 0.06, labels.shape) * brain, random.uniform(0.5, 0.9))
    bias = zoom(random.normal(0, 0.12, (4, 4, 4)), np.array(labels.shape) / 4, order=3)
    image = (image * np.exp(bias) + random.normal(0, 0.03, labels.shape)) * brain
    return (200 * image).clip(0, 255).astype(np.uint8)


def main(source: str, target: str, step: int = 1) -> None:
    """Write images, labels and a ``dataset.json`` that lists all cases as training."""
    root, folder = Path(source), Path(target)
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = []
    for seed, path in enumerate(sorted(root.glob("labels*/*.nii.gz"))):
        file = nib.load(path)
        labels = np.asarray(file.dataobj)[::step, ::step, ::step]
        image = synthesize(labels, np.random.default_rng(seed))
        if (real := root / "images" / path.name).is_file():
            image = np.asarray(nib.load(real).dataobj)[::step, ::step, ::step]
        affine = file.affine @ np.diag([step, step, step, 1])
        for part, voxels in (("images", image), ("labels", labels)):
            nib.save(nib.Nifti1Image(voxels, affine), folder / part / path.name)
        names.append(path.name)
    found = [{"image": f"images/{name}", "label": f"labels/{name}"} for name in names]
    (folder / "dataset.json").write_text(json.dumps({"training": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
