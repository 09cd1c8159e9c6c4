# SPDX-License-Identifier: Apache-2.0
"""Damage files of each format, and count what loading them comes to.

A flipped byte or a file that is cut off may be refused by one error, or, where a format has no checksum, change voxels.
A trace is never right, and neither is another image from a format with a checksum.
"""

import argparse
import logging
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import itk
import nibabel
import numpy as np
from monai.transforms import LoadImage
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from monai_attn.data import CheckingReader
from monai_attn.errors import InputError
from tests.conftest import write_dicom

VOXELS = np.random.RandomState(0).randint(0, 1000, (12, 13, 14)).astype(np.int16)
CHECKED = ("a.nii.gz", "a.mgz", "a.mha", "a.nrrd", "a.png")  # by gzip, zlib or PNG
FORMATS = (*CHECKED, "a.nii", "b.mha", "b.nrrd", "a.tif", "a.jpg", "a.bmp", "a.webp", "a.dcm", "series")


def write(path: Path) -> Path:
    """Write an image, compressed by ITK if its name begins with an a; return the file to damage."""
    if path.name == "series":
        return sorted(write_dicom(path, range(VOXELS.shape[2]), voxels=VOXELS).iterdir())[3]
    if path.suffix == ".dcm":
        write_dicom(path, range(VOXELS.shape[2]), voxels=VOXELS)
    elif path.suffix in (".mha", ".nrrd"):
        itk.imwrite(itk.image_from_array(VOXELS), str(path), compression=path.name.startswith("a"))
    elif path.suffix in (".nii", ".gz", ".mgz"):
        nibabel.save((nibabel.MGHImage if path.suffix == ".mgz" else nibabel.Nifti1Image)(VOXELS, np.eye(4)), path)
    else:
        Image.fromarray((VOXELS[..., 0] % 256).astype(np.uint8)).save(path)
    return path


def load(path: Path) -> np.ndarray:
    return np.asarray(LoadImage(image_only=True, ensure_channel_first=True)(path, CheckingReader()))


def damage(content: bytes, random: np.random.RandomState) -> bytes:
    """Flip a bit of one to three bytes, often at the beginning, or cut the file off."""
    if random.rand() < 0.2:
        return content[: random.randint(len(content))]
    changed = bytearray(content)
    end = min(len(content), 512) if random.rand() < 0.4 else len(content)
    for index in random.randint(end, size=random.randint(1, 4)):
        changed[index] ^= 1 << random.randint(8)
    return bytes(changed)


def outcome(path: Path, whole: np.ndarray) -> str:
    try:
        found = load(path)
    except InputError:
        return "refused"
    except BaseException as error:
        print(f"{path.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return "traces"
    return "as it was" if np.array_equal(found, whole, equal_nan=True) else "other voxels"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=300, help="damaged files of each format")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.disable()
    warnings.simplefilter("ignore")
    itk.ProcessObject.SetGlobalWarningDisplay(False)
    wrong = 0
    for name in FORMATS:
        random, counts = np.random.RandomState(arguments.seed), Counter()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            file = write(path)
            whole, content = load(path), file.read_bytes()
            for _ in range(arguments.number):
                file.write_bytes(damage(content, random))
                counts[outcome(path, whole)] += 1
        wrong += counts["traces"] + (counts["other voxels"] if name in CHECKED else 0)
        print(f"{name:9}", ", ".join(f"{counts[key]} {key}" for key in sorted(counts)), flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
