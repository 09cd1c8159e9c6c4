# SPDX-License-Identifier: Apache-2.0
"""Checking image reader, error-tolerant dataset, and distributed sampler."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from monai.config import PathLike
from monai.data import Dataset, ImageReader, ITKReader, NibabelReader, NumpyReader, PILReader
from monai.utils import CommonKeys, MetaKeys, ensure_tuple, look_up_option, optional_import
from torch.utils.data import DistributedSampler, RandomSampler

from monai_attn.data.dicom import check_series, place_slices
from monai_attn.data.formats import NIFTI_SUFFIXES, check_nifti, check_stream, correct_affine
from monai_attn.errors import ConfigError, DataError, Failure, InputError, root_cause
from monai_attn.files import check_content

__all__ = ["ORIENTATION", "ORIENTATION_TAG", "PALETTE", "SIXTEEN_BITS"]
__all__ += ["CaseDataset", "CheckingReader", "DistributedRandomSampler", "check_file", "failure_in"]

PILImage, _ = optional_import("PIL.Image")
ImageOps, _ = optional_import("PIL.ImageOps")

ORIENTATION = "exif_orientation"
"""Metadata of a picture that was stored turned or mirrored: its EXIF tag."""

PALETTE = "palette"
"""Metadata of a picture of indices: their colors (number, 3)."""

SIXTEEN_BITS = "16_bits"
"""Metadata of an image of unsigned 16-bit numbers."""

ORIENTATION_TAG = 0x0112
_PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_FAILURE = "failure"
_IDLE = {CommonKeys.IMAGE: ""}  # stands where no case is left


def _upright(picture: Any) -> Any:
    """Apply the EXIF orientation, and convert what is printed to RGB; note what has been found."""
    kind, turned = picture.format, picture.getexif().get(ORIENTATION_TAG, 1)
    if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        picture = picture.convert("RGB")
    if turned in range(2, 9):
        picture = ImageOps.exif_transpose(picture)
        picture.info[ORIENTATION] = turned
    if picture.mode == "P":
        picture.info[PALETTE] = np.array(picture.getpalette("RGB")).reshape(-1, 3)
    picture.format = kind
    return picture


# ITK reads everything else (DICOM, NRRD, MetaImage, TIFF) and could read NIfTI, but makes NaN and what is cut off 0
_READERS: dict[tuple[str, ...], Callable[[], ImageReader]] = {
    (*NIFTI_SUFFIXES, ".hdr", ".img", ".mgz"): NibabelReader,
    _PICTURES: partial(PILReader, _upright),
    (".npy", ".npz"): NumpyReader,
}


def check_file(path: str | Path) -> None:
    """Check that an image file or DICOM folder is complete.

    A compressed NIfTI file is read to its end to verify its checksum (0.1 s for 240 × 240 × 155 voxels). Headers are
    compared with the length of the file before memory is allocated, and the checksums of compressed MetaImage, NRRD and
    MGZ files are verified too. Other formats are left to their readers, which notice damage. A good file is not checked
    again until it changes.

    Raises:
        DataError: if the file is missing, empty, damaged, not of the format that its name promises, or larger than the
            memory of the machine.

    Example:
        ``check_file("images/case_1.nii.gz")``
    """
    file = Path(path).expanduser()
    if file.is_dir():
        check_series(file)
        return
    try:
        status = file.stat()
        _check_content(str(file), status.st_size, status.st_mtime_ns)
    except FileNotFoundError as error:
        raise DataError(str(file), "there is no such file or folder", "correct the path") from error
    except PermissionError as error:
        raise DataError(str(file), "it may not be read (permission denied)", "change its permissions") from error


@cache
def _check_content(path: str, size: int, changed: int) -> None:
    """Check a file; its size and time of change are part of the cache's key."""
    check_content(path)
    if path.lower().endswith(NIFTI_SUFFIXES):
        check_nifti(path)
    check_stream(path)
    if path.lower().endswith((*_PICTURES, ".tif", ".tiff")):
        _check_picture(path)


def _check_picture(path: str) -> None:
    """Check a picture by its header, before memory is allocated."""
    with _naming([path]):
        try:
            with PILImage.open(path) as picture:
                size, frames = picture.size, getattr(picture, "n_frames", 1)
                kind, mode = picture.format, picture.mode
                turned = picture.getexif().get(ORIENTATION_TAG, 1) if kind == "TIFF" else 1
        except PILImage.UnidentifiedImageError:
            if path.lower().endswith(_PICTURES):
                raise
            return  # ITK knows more kinds of TIFF
        except PILImage.DecompressionBombError as error:
            raise DataError(path, f"it is too large: {error}", "cut or shrink it") from error
    if size[0] * size[1] > PILImage.MAX_IMAGE_PIXELS:
        problem = f"its size is {size[0]} x {size[1]}, and at most {PILImage.MAX_IMAGE_PIXELS:,} pixels are read"
        raise DataError(path, problem, "cut or shrink it")
    if frames > 1 and kind not in ("TIFF", "MPO"):  # pages are slices, and cameras append previews
        raise DataError(path, f"it has {frames} frames", "save one of them as a picture of its own")
    if kind == "TIFF" and (turned != 1 or mode == "CMYK"):  # ITK ignores both
        raise DataError(path, "it is stored turned, mirrored or for print (CMYK)", "save it as PNG")


class CheckingReader(ImageReader):
    """Image reader for any format that first checks files.

    Unlike MONAI's ``LoadImage``, it always uses the same reader for a format, a new one for every file: MONAI's readers
    keep state. Use an instance in one thread at a time.

    Raises:
        DataError: if a file cannot be read, or the files of one image do not lie on one grid.

    Example:
        ``LoadImage(image_only=True)("images/case_1.nii.gz", CheckingReader())``
    """

    def __init__(self) -> None:
        self._files: tuple[str, ...] = ()
        self._reader: ImageReader = NibabelReader()

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Accept every file, so that ``LoadImage`` tries no other reader."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Open one file, or several as channels of one image."""
        self._files = tuple(str(file) for file in ensure_tuple(data))
        for file in self._files:
            with _naming([file]):
                check_file(file)
            if _reader_for(file) is not _reader_for(self._files[0]):
                raise DataError(file, f"its format is not that of {self._files[0]}", "give all channels in one format")
        self._reader = _reader_for(self._files[0])()
        with _naming(self._files):
            images = self._reader.read(self._files, **kwargs)
            if not isinstance(self._reader, ITKReader):
                return images
            return [place_slices(image, Path(file)) for image, file in zip(ensure_tuple(images), self._files)]

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Return voxels and metadata of an opened image."""
        with _naming(self._files):
            try:
                array, meta = self._reader.get_data(img)
            except (RuntimeError, ValueError):
                self._check_grids(img)
                raise
        meta |= {key: value for key, value in getattr(img, "info", {}).items() if key in (ORIENTATION, PALETTE)}
        meta |= {SIXTEEN_BITS: True} if array.dtype == np.uint16 else {}
        if "sform_code" in meta:  # NIfTI, also as a pair of files
            header = re.sub("img$", "hdr", re.sub("IMG$", "HDR", self._files[0]))
            meta[MetaKeys.ORIGINAL_AFFINE] = correct_affine(header, meta[MetaKeys.ORIGINAL_AFFINE])
            meta[MetaKeys.AFFINE] = meta[MetaKeys.ORIGINAL_AFFINE].copy()
        elif self._files[0].lower().endswith((".hdr", ".img")):  # Analyze, which has no orientation
            meta |= {"qform_code": 0, "sform_code": 0}
        return array, meta

    def _check_grids(self, images: Any) -> None:
        """Raise if the files do not lie on one grid."""
        grids = [self._reader.get_data(image)[1] for image in ensure_tuple(images)]
        for file, grid in zip(self._files, grids):
            for key in (MetaKeys.SPATIAL_SHAPE, MetaKeys.AFFINE):
                found, expected = np.asarray(grid.get(key, ())), np.asarray(grids[0].get(key, ()))
                if found.shape != expected.shape or not np.allclose(found, expected):
                    problem = f"its {key} {found.tolist()} is not that of {self._files[0]}, {expected.tolist()}"
                    raise DataError(file, problem, "bring all channels of a case to one grid") from None


class CaseDataset(Dataset):
    """Dataset that can return failed cases instead of raising errors.

    :class:`monai_attn.handlers.SkipFailedCases` skips and counts them. The batch size of the loader must be 1.

    Args:
        data: dictionaries with ``image``, the file or files of a case.
        transform: the preprocessing of a case.
        on_error: ``"stop"`` to raise the error, ``"skip"`` to return it. An error of the configuration is always
            raised, as it would affect every case.
        unfinished: selects the cases to run, such as :class:`monai_attn.run.FinishedCases`.

    Attributes:
        finished: number of cases that ``unfinished`` left out.

    Example:
        >>> def read(case):
        ...     raise EOFError("nothing left")
        >>> failure_in(CaseDataset([{"image": "a.nii"}], read, on_error="skip")[0]).problem
        'EOFError: nothing left'
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        transform: Callable | None = None,
        *,
        on_error: str = "stop",
        unfinished: Callable[[Sequence], list] | None = None,
    ) -> None:
        # MONAI's engines skip a run without items, and the other processes would wait for this one's handlers
        super().__init__(data if unfinished is None else unfinished(data) or [_IDLE], transform)
        self.finished = getattr(unfinished, "finished", 0)
        self.on_error = look_up_option(on_error, ("stop", "skip"))

    def _transform(self, index: int) -> Any:
        if self.data[index] == _IDLE:
            return _IDLE
        try:
            return super()._transform(index)
        except Exception as error:  # whatever is wrong with the case
            if self.on_error == "stop" or isinstance(root_cause(error), ConfigError):
                raise
            case = str(ensure_tuple(self.data[index][CommonKeys.IMAGE])[0])
            logging.getLogger(__name__).exception("%s cannot be prepared", case)
            return {_FAILURE: Failure.of(error, case)._asdict()}


def failure_in(item: Mapping[str, Any]) -> Failure | None:
    """Return the failure in an item or batch, or None."""
    if _FAILURE not in item:
        return None
    fields: list[Any] = [value if isinstance(value, (str, bool)) else value[0] for value in item[_FAILURE].values()]
    what, problem, fix, expected = fields
    return Failure(what, problem, fix, bool(expected))


@contextmanager
def _naming(files: Sequence[str]) -> Iterator[None]:
    """Name the files in an error of the reader."""
    try:
        yield
    except (InputError, ImportError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        problem = f"it cannot be read: {reason}"
        raise DataError(", ".join(files), problem, "copy, download or export it again") from error


def _reader_for(file: str) -> Callable[[], ImageReader]:
    name = Path(file).name.lower()
    return next((reader for suffixes, reader in _READERS.items() if name.endswith(suffixes)), ITKReader)


class DistributedRandomSampler(DistributedSampler):
    """Split the draws of a random sampler among processes.

    All processes draw the same items for a seed and an epoch. The global random generators, which differ between
    processes, are not used.

    Example:
        ``DistributedRandomSampler(torch.utils.data.RandomSampler(dataset), seed=0)``
    """

    def __init__(self, sampler: RandomSampler, seed: int = 0) -> None:
        draws: Any = sampler  # of which only the number counts
        super().__init__(draws, idist.get_world_size(), idist.get_rank(), shuffle=False, seed=seed)
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        """Draw, and return this process's part."""
        entropy = np.random.SeedSequence([self.seed, self.epoch])
        self.sampler.generator = torch.Generator().manual_seed(int(entropy.generate_state(1)[0]))
        drawn = list(self.sampler)
        return (drawn[position] for position in super().__iter__())
