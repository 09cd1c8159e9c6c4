# SPDX-License-Identifier: Apache-2.0
"""Results that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch
from monai.config import KeysCollection, PathLike
from monai.data import MetaTensor, NibabelWriter, PILWriter
from monai.data.utils import to_affine_nd
from monai.transforms import SaveImage, SaveImaged
from monai.utils import MetaKeys, convert_to_numpy, get_equivalent_dtype, optional_import

from monai_attn.data.datalist import common_root, find_images
from monai_attn.errors import DataError
from monai_attn.files import atomic_write

__all__ = ["SafeSaveImage", "SafeSaveImageD", "SafeSaveImageDict", "SafeSaveImaged", "origin_of"]

PILImage, _ = optional_import("PIL.Image")
PngInfo, _ = optional_import("PIL.PngImagePlugin", name="PngInfo")


class SafeSaveImage(SaveImage):
    """MONAI's ``SaveImage`` for results that must not get lost, or wrong, without a word.

    What is written is read again and compared with what was meant, and only then gets its name: there is never half a
    file under the name of a result. There is one writer for each format, and its error is the user's error
    (``SaveImage`` tries another one, whatever the first one left). A volume of a single slice stays a volume. The
    folders below the deepest one that holds all images are kept, so that images of one name in two folders give two
    results, and no result lies outside of ``output_dir``.

    Args:
        output_dir: folder for the results.
        output_postfix: what follows the name of the image.
        output_ext: ``.nii.gz``, ``.nii`` or ``.png``.
        output_dtype: type of the values.
        scale: 255 to write values from 0 to 1 as grey values from 0 to 255 (``.png`` only).
        source: what is segmented, as :func:`monai_attn.data.find_images` takes it; without it, all results lie in
            ``output_dir`` itself.
        origin: tells of an image file what makes its result, in at most 79 characters to be written into the file,
            such as :class:`monai_attn.workflow.Provenance`.

    Raises:
        ValueError: if there is no writer for ``output_ext``.
        DataError: when called, if a result cannot be written, or is not what was meant once it is read again.

    Example:
        ``SafeSaveImage("out", source="scans")(label_map)``
    """

    def __init__(
        self,
        output_dir: PathLike = "./",
        *,
        output_postfix: str = "seg",
        output_ext: str = ".nii.gz",
        output_dtype: torch.dtype = torch.uint8,
        scale: int | None = None,
        source: str | Sequence[str] | None = None,
        origin: Callable[[str], str] | None = None,
    ) -> None:
        if output_ext not in _FORMATS:
            raise ValueError(f"output_ext must be one of {', '.join(_FORMATS)}, got {output_ext!r}.")
        super().__init__(
            output_dir,
            output_postfix,
            output_ext,
            get_equivalent_dtype(output_dtype, np.ndarray),
            scale=scale,
            separate_folder=False,
            writer=_FORMATS[output_ext].writer,
        )
        self.output_dir = output_dir
        self.source = source
        self.origin = origin
        self._root: str | None = None

    def path_of(self, subject: PathLike, idx: int | None = None) -> Path:
        """The file for the result of an image file; its folder is made if need be."""
        if self._root is None:  # not earlier: a configuration is also read where there are no images
            self._root = "" if self.source is None else common_root(find_images(self.source))
            self.folder_layout.data_root_dir = self._root  # type: ignore[attr-defined]
        try:
            path = Path(self.folder_layout.filename(subject=subject, idx=idx))
        except OSError as error:
            raise DataError(
                str(self.output_dir), f"it cannot be written: {error.strerror}", "give another output_dir"
            ) from error
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(self.output_dir)):
            raise DataError(
                str(subject),
                f"it is not below {self._root}, so its result would not be in {self.output_dir}",
                "give the folder that holds it",
            )
        return path

    def __call__(
        self, img: torch.Tensor | np.ndarray, meta_data: dict | None = None, filename: PathLike | None = None
    ) -> torch.Tensor | np.ndarray:
        """Write an image (C, *spatial), or (*spatial) if its metadata say so, and return it."""
        meta = img.meta if isinstance(img, MetaTensor) else meta_data or {}
        name = self.fname_formatter(meta, self)
        path = self.path_of(**name) if filename is None else Path(f"{filename}{self.output_ext}")
        line = self.origin(str(name["subject"])) if self.origin is not None else ""

        kind, writer = _FORMATS[self.output_ext], self._writer(img, meta)
        meant = _as_written(np.asarray(writer.data_obj), self.init_kwargs["scale"])
        with atomic_write(path) as draft:
            writer.write(draft, verbose=False, **kind.note(line, self.init_kwargs["output_dtype"]))
            if not _equal(kind.read(draft), meant, getattr(writer, "affine", None)):
                raise DataError(str(path), "what was written is not what is read from it", "look for a faulty disk")
        meta[MetaKeys.SAVED_TO] = str(path)
        self._data_index += 1
        return img

    def _writer(self, img: torch.Tensor | np.ndarray, meta: dict) -> Any:
        """The writer of the format, with an image whose channels are last, or gone if there is only one."""
        has_channels = len(meta.get(MetaKeys.SPATIAL_SHAPE, ())) < img.ndim
        array = convert_to_numpy(img)
        writer: Any = _FORMATS[self.output_ext].writer(**self.init_kwargs)
        writer.set_data_array(array, channel_dim=0 if has_channels else None, squeeze_end_dims=False)
        if not has_channels or len(array) == 1:
            writer.data_obj = array.reshape(array.shape[1:] if has_channels else array.shape)
        # not set_metadata, which takes the last axis for channels, and passes the values through a resampling
        writer.affine = meta.get(MetaKeys.AFFINE)
        return writer


class SafeSaveImaged(SaveImaged):
    """Dictionary form of :class:`SafeSaveImage`.

    Args:
        keys: keys of the images to write.
        output_dir: see :class:`SafeSaveImage`, as for the other arguments.
        output_postfix: what follows the name of the image.
        output_ext: ending of the files.
        output_dtype: type of the values.
        scale: 255 to write values from 0 to 1 as grey values from 0 to 255.
        source: what is segmented.
        origin: tells of an image file what makes its result.
        allow_missing_keys: whether a missing key is passed over.

    Example:
        ``SafeSaveImaged("pred", "out", source="scans", output_ext=".png", scale=255)``
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: PathLike = "./",
        *,
        output_postfix: str = "seg",
        output_ext: str = ".nii.gz",
        output_dtype: torch.dtype = torch.uint8,
        scale: int | None = None,
        source: str | Sequence[str] | None = None,
        origin: Callable[[str], str] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self.saver: SafeSaveImage = SafeSaveImage(
            output_dir,
            output_postfix=output_postfix,
            output_ext=output_ext,
            output_dtype=output_dtype,
            scale=scale,
            source=source,
            origin=origin,
        )


def origin_of(path: str | Path) -> str:
    """The line about its origin that :class:`SafeSaveImage` wrote into a file; empty if there is none.

    Example:
        ``origin_of("out/case_1_seg.nii.gz")``
    """
    kind = next((kind for ending, kind in _FORMATS.items() if str(path).endswith(ending)), None)
    try:
        return kind.origin(path) if kind else ""
    except (OSError, EOFError, nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError):
        return ""  # not a file of ours


class _Format(NamedTuple):
    """How to write a format, and what to read it again with."""

    writer: type
    note: Callable[[str, Any], dict[str, Any]]
    read: Callable[[str | Path], tuple[np.ndarray, np.ndarray | None]]
    origin: Callable[[str | Path], str]


def _note_in_nifti(line: str, dtype: Any) -> dict[str, Any]:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_xyzt_units("mm")
    header["descrip"] = line.encode()[:79]
    return {"header": header}


def _read_nifti(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    image: Any = nibabel.load(path)
    return np.asanyarray(image.dataobj), image.affine


def _origin_in_nifti(path: str | Path) -> str:
    header: Any = nibabel.load(path).header
    return header["descrip"].item().decode(errors="replace")


def _note_in_png(line: str, _dtype: Any) -> dict[str, Any]:
    info = PngInfo()
    info.add_text("Description", line)
    return {"pnginfo": info}


def _read_png(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    with PILImage.open(path) as image:
        return np.swapaxes(np.asarray(image), 0, 1), None


def _origin_in_png(path: str | Path) -> str:
    with PILImage.open(path) as image:
        return image.info.get("Description", "")


def _as_written(values: np.ndarray, scale: Any) -> np.ndarray:
    """The grey values that MONAI's writer makes of values from 0 to 1, if it is to scale them."""
    return values if scale is None else (scale * values.clip(0, 1)).astype(np.uint8)


def _equal(found: tuple[np.ndarray, np.ndarray | None], meant: np.ndarray, affine: Any) -> bool:
    values, place = found
    same_place = place is None or np.allclose(place, to_affine_nd(3, convert_to_numpy(affine)), atol=1e-4)
    return same_place and np.array_equal(values, meant, equal_nan=True)


_NIFTI = _Format(NibabelWriter, _note_in_nifti, _read_nifti, _origin_in_nifti)
_FORMATS = {
    ".nii.gz": _NIFTI,
    ".nii": _NIFTI,
    ".png": _Format(PILWriter, _note_in_png, _read_png, _origin_in_png),
}

SafeSaveImageD = SafeSaveImageDict = SafeSaveImaged
