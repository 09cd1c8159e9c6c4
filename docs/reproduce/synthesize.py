# SPDX-License-Identifier: Apache-2.0
"""Make images like T1-weighted MRI from maps of 27 brain structures.

  python docs/reproduce/synthesize.py data/brain_aseg27 data/brain_synthetic

Every map of ``labels_only`` gets an image; the cases with a real image are listed beside them.
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


def main(source: str, target: str) -> None:
    """Write the images and a ``dataset.json`` that lists all cases as training."""
    root, folder = Path(source).absolute(), Path(target).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    listed = [*(root / "images").glob("*.nii.gz")]
    found = [{"image": str(image), "label": str(root / "labels" / image.name)} for image in sorted(listed)]
    for seed, path in enumerate(sorted((root / "labels_only").glob("*.nii.gz"))):
        labels = nib.load(path)
        image = synthesize(np.asarray(labels.dataobj), np.random.default_rng(seed))
        nib.save(nib.Nifti1Image(image, labels.affine), folder / path.name)
        found.append({"image": path.name, "label": str(path)})
    (folder / "dataset.json").write_text(json.dumps({"training": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
