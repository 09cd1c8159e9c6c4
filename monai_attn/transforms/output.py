# SPDX-License-Identifier: Apache-2.0
"""Save predictions as NIfTI, PNG and DICOM SEG."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor
from monai.data.utils import create_file_basename, to_affine_nd
from monai.transforms import SaveImage, SaveImaged
from monai.utils import ImageMetaKey, MetaKeys, convert_to_numpy, get_equivalent_dtype, optional_import

from monai_attn.data.dicom import is_dicom, write_segmentation
from monai_attn.data.formats import forms_like, provenance_of
from monai_attn.data.layouts import case_name
from monai_attn.data.reader import ORIENTATION, ORIENTATION_TAG
from monai_attn.errors import ConfigError, DataError
from monai_attn.files import atomic_write, writing_to

__all__ = ["SafeSaveImage", "SafeSaveImaged", "provenance_of"]

PILImage, _ = optional_import("PIL.Image")
ImageOps, _ = optional_import("PIL.ImageOps")
PngInfo, _ = optional_import("PIL.PngImagePlugin", name="PngInfo")


class SafeSaveImage(SaveImage):
    """Save images atomically and verify what was written.

    Unlike MONAI's ``SaveImage``, a file gets its name only once it has been read back, each format has one writer, and
    a volume of a single slice stays a volume. Folders below ``data_root_dir`` are kept; without it, images of the same
    name replace each other. No file is written outside of ``output_dir``, unless ``filename`` is given.

    Args:
        output_dir, output_postfix, output_dtype: see ``SaveImage``.
        output_ext: ``.nii.gz``, ``.nii`` or ``.png``; ``.dcm`` for a DICOM SEG of a DICOM series, by highdicom.
        scale: 255 to write values from 0 to 1 as gray values from 0 to 255 (``.png`` only).
        data_root_dir: folder that holds all images, set by :class:`monai_attn.run.FinishedCases`.
        provenance: returns for an image file at most 79 characters on the origin of its result, to be written into the
            file, such as :class:`monai_attn.run.Provenance`.
        metadata: ``metadata.json`` of the bundle, for the name, version and codes of structures in a DICOM SEG.
        class_names: names of the classes 1, 2, … in a DICOM SEG; ``"unused"`` stands for a class that does not occur.

    Raises:
        ValueError: if there is no writer for ``output_ext``.
        ConfigError: if highdicom is needed and not installed.
        DataError: when called, if a result cannot be written or is not read back the same.

    Example:
        ``SafeSaveImage("out", data_root_dir="scans")(label_map)``
    """

    def __init__(
        self,
        output_dir: PathLike = "./",
        *,
        output_postfix: str = "seg",
        output_ext: str = ".nii.gz",
        output_dtype: torch.dtype = torch.uint8,
        scale: int | None = None,
        data_root_dir: PathLike = "",
        provenance: Callable[[str], str] | None = None,
        metadata: PathLike = "",
        class_names: Sequence[str] = (),
    ) -> None:
        if output_ext not in _WRITERS:
            raise ValueError(f"output_ext must be one of {', '.join(_WRITERS)}, got {output_ext!r}.")
        if output_ext == ".dcm" and find_spec("highdicom") is None:
            raise ConfigError("--dicom_seg", "it needs the package highdicom", "pip install highdicom")
        super().__init__(output_dir, output_postfix, output_ext, separate_folder=False)
        self.output_dir = output_dir
        self.output_postfix = output_postfix
        self.output_dtype = get_equivalent_dtype(output_dtype, np.ndarray)
        self.scale = scale
        self.data_root_dir = data_root_dir
        self.provenance = provenance
        self.metadata = metadata
        self.class_names = class_names
        self._unnamed = 0  # images without a file so far

    def path_of(self, subject: PathLike) -> Path:
        """Return the path of the result of an image file.

        Raises:
            DataError: if it is not below ``output_dir``, or is a DICOM SEG of an image that is not DICOM.
        """
        if self.output_ext == ".dcm" and os.path.isfile(subject) and not is_dicom(Path(subject)):
            problem = "a DICOM SEG belongs to a DICOM series, and this is another format"
            raise DataError(str(subject), problem, "give the DICOM series, or leave --dicom_seg out")
        folder, name = os.path.dirname(subject), case_name(str(subject))
        source = os.path.join(folder, f"{name}.nii")  # MONAI would take whatever is behind a dot for the ending
        path = create_file_basename(
            self.output_postfix, source, self.output_dir, self.data_root_dir, separate_folder=False, makedirs=False
        )
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.output_dir)):
            problem = f"it is not below {self.data_root_dir}, so its result would not be in {self.output_dir}"
            raise DataError(str(subject), problem, "give the folder that holds it")
        return Path(f"{path}{self.output_ext}")

    def __call__(
        self, img: torch.Tensor | np.ndarray, meta_data: dict | None = None, filename: PathLike | None = None
    ) -> torch.Tensor | np.ndarray:
        """Write and return an image (C, *spatial) or (*spatial).

        It has channels if it has more axes than the ``spatial_shape`` in its metadata.
        """
        meta = img.meta if isinstance(img, MetaTensor) else meta_data or {}
        subject = str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, self._unnamed))
        self._unnamed += ImageMetaKey.FILENAME_OR_OBJ not in meta
        path = self.path_of(subject) if filename is None else Path(f"{filename}{self.output_ext}")
        line = self.provenance(subject) if self.provenance is not None else ""

        values = convert_to_numpy(img)
        if len(meta.get(MetaKeys.SPATIAL_SHAPE, ())) < values.ndim:  # it has channels
            values = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
        if self.scale is not None:
            values = self.scale * values.clip(0, 1)
        exact, values = values, values.astype(self.output_dtype, copy=False)
        if self.scale is None and values.dtype.kind in "iu" and not np.array_equal(exact, values):
            raise DataError(subject, f"its values do not fit {values.dtype}", "give another output_dtype")
        with writing_to(path.parent, "give another output_dir"):
            path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as draft:
            options = {"metadata": self.metadata, "class_names": self.class_names} if self.output_ext == ".dcm" else {}
            if not _WRITERS[self.output_ext](draft, values, line, meta, **options):
                raise DataError(str(path), "what was written is not what is read from it", "look for a faulty disk")
        if self.output_ext != ".dcm":  # the mask that reports and pictures lie beside
            meta[MetaKeys.SAVED_TO] = str(path)
        return img


class SafeSaveImaged(SaveImaged):
    """Dictionary form of :class:`SafeSaveImage`, with the same ``options``.

    Example:
        ``SafeSaveImaged("pred", "out", data_root_dir="scans", output_ext=".png", scale=255)``
    """

    def __init__(
        self, keys: KeysCollection, output_dir: PathLike = "./", *, allow_missing_keys: bool = False, **options: Any
    ) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self.saver: SafeSaveImage = SafeSaveImage(output_dir, **options)


def _write_nifti(path: Path, values: np.ndarray, line: str, meta: Mapping[str, Any]) -> bool:
    """Write a volume; return whether it reads the same."""
    affine, values = _affine(meta), np.asfortranarray(values)  # as the file has them
    qform, (affine, code) = forms_like(str(meta.get(ImageMetaKey.FILENAME_OR_OBJ, "")), affine)
    image = nibabel.Nifti1Image(values, affine)
    image.set_sform(affine, code)
    image.set_qform(*qform)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = line.encode()[:79]
    nibabel.save(image, path)
    written: Any = nibabel.load(path)
    can_be_nan = values.dtype.kind == "f"  # to look for it takes ten times as long as to compare
    is_same = np.array_equal(np.asanyarray(written.dataobj), values, equal_nan=can_be_nan)
    return is_same and np.allclose(written.affine, affine, atol=1e-4)


def _write_png(path: Path, values: np.ndarray, line: str, meta: Mapping[str, Any]) -> bool:
    """Write an image (x, y), turned as its picture is stored; return whether it reads alike."""
    info = PngInfo()
    info.add_text("Description", line)
    picture = PILImage.fromarray(np.swapaxes(values, 0, 1))
    options = {}
    if (turned := int(meta.get(ORIENTATION, 1))) != 1:
        picture.getexif()[ORIENTATION_TAG] = {6: 8, 8: 6}.get(turned, turned)  # the way back
        picture = ImageOps.exif_transpose(picture)
        options["exif"] = picture.getexif()
        options["exif"][ORIENTATION_TAG] = turned
    picture.save(path, pnginfo=info, **options)
    with PILImage.open(path) as written:
        return np.array_equal(np.swapaxes(np.asarray(ImageOps.exif_transpose(written)), 0, 1), values)


def _write_dicom_seg(path: Path, values: np.ndarray, line: str, meta: Mapping[str, Any], **about: Any) -> bool:
    """Write a DICOM SEG; return whether it reads the same."""
    about["bundle"] = json.loads(Path(about.pop("metadata")).read_text(encoding="utf-8"))
    source = Path(meta[ImageMetaKey.FILENAME_OR_OBJ])
    return write_segmentation(path, values, _affine(meta), source, provenance=line, **about)


def _affine(meta: Mapping[str, Any]) -> np.ndarray:
    return to_affine_nd(3, convert_to_numpy(meta.get(MetaKeys.AFFINE, np.eye(4))))


_WRITERS: dict[str, Callable[..., bool]] = {
    ".nii.gz": _write_nifti, ".nii": _write_nifti, ".png": _write_png, ".dcm": _write_dicom_seg,
}  # fmt: skip
