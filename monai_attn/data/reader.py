# SPDX-License-Identifier: Apache-2.0
"""One reader for each file format, after a look at the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader, ITKReader, NibabelReader, NumpyReader, PILReader
from monai.utils import MetaKeys, ensure_tuple

from monai_attn.data.files import check_file
from monai_attn.data.nifti import NIFTI_SUFFIXES, warn_if_corrected
from monai_attn.errors import DataError, InputError

__all__ = ["CheckingReader"]

# ITK reads everything else (DICOM, NRRD, MetaImage, TIFF) and could read NIfTI, but makes NaN and what is cut off 0
_READERS: dict[tuple[str, ...], type[ImageReader]] = {
    (*NIFTI_SUFFIXES, ".hdr", ".img"): NibabelReader,
    (".png", ".jpg", ".jpeg", ".bmp"): PILReader,
    (".npy", ".npz"): NumpyReader,
}


class CheckingReader(ImageReader):
    """MONAI's reader for the format of a file, after :func:`monai_attn.data.check_file`.

    MONAI's ``LoadImage`` tries other readers where the named one fails, and its readers keep what they are reading in
    themselves, so that threads must not share them. This one always takes the same reader for a format, a new one for
    every file. Use one instance in one thread at a time.

    Raises:
        DataError: if a file cannot be read, or the files of one image do not lie on one grid.

    Example:
        ``LoadImage(image_only=True)("images/case_1.nii.gz", CheckingReader())``
    """

    def __init__(self) -> None:
        self._files: tuple[str, ...] = ()
        self._reader: ImageReader = NibabelReader()

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Take every file: what cannot be read is to be an error, not a reason to try another reader."""
        return True

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Open one or more files, of several as the channels of one image; ``kwargs`` go to the reader."""
        self._files = tuple(str(file) for file in ensure_tuple(data))
        for file in self._files:
            check_file(file)
        kinds = [_reader_for(file) for file in self._files]
        for file, kind in zip(self._files, kinds):
            if kind is not kinds[0]:
                raise DataError(file, f"its format is not that of {self._files[0]}", "give all channels in one format")
        self._reader = kinds[0]()
        return self._guard(lambda: self._reader.read(self._files, **kwargs))

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """The voxels and metadata of what ``read`` returned."""
        array, meta = self._guard(lambda: self._stack(img))
        if self._files[0].lower().endswith(NIFTI_SUFFIXES):
            warn_if_corrected(self._files[0], meta[MetaKeys.ORIGINAL_AFFINE])
        return array, meta

    def _stack(self, images: Any) -> tuple[np.ndarray, dict]:
        try:
            return self._reader.get_data(images)
        except (RuntimeError, ValueError):  # of files that do not fit together
            grids = [self._reader.get_data(image)[1] for image in ensure_tuple(images)]
            for file, grid in zip(self._files, grids):
                for key in (MetaKeys.SPATIAL_SHAPE, MetaKeys.AFFINE):
                    found, expected = np.asarray(grid.get(key, ())), np.asarray(grids[0].get(key, ()))
                    if found.shape != expected.shape or not np.allclose(found, expected):
                        problem = f"its {key} {found.tolist()} is not that of {self._files[0]}, {expected.tolist()}"
                        raise DataError(file, problem, "bring all channels of a case to one grid") from None
            raise

    def _guard(self, work: Callable[[], Any]) -> Any:
        """Do something with the files, and name them if it fails."""
        try:
            return work()
        except (InputError, ImportError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(
                ", ".join(self._files), f"it cannot be read: {reason}", "copy, download or export it again"
            ) from error


def _reader_for(file: str) -> type[ImageReader]:
    name = Path(file).name.lower()
    return next((reader for suffixes, reader in _READERS.items() if name.endswith(suffixes)), ITKReader)
