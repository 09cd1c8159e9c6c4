# SPDX-License-Identifier: Apache-2.0
"""Check NIfTI and compressed files, affines and provenance of results."""

from __future__ import annotations

import gzip
import itertools
import logging
import math
import os
import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import itk
import nibabel
import numpy as np
import pydicom
from monai.utils import optional_import

from monai_attn.errors import DataError

__all__ = ["NIFTI_SUFFIXES", "check_nifti", "check_stream", "correct_affine", "describe_affine", "forms_like"]
__all__ += ["PROVENANCE", "is_result", "provenance_of", "read_header"]

PILImage, _ = optional_import("PIL.Image")

NIFTI_SUFFIXES = (".nii", ".nii.gz")
_HEADED = (".mha", ".mhd", ".nrrd", ".nhdr")
_COMPRESSED = re.compile(rb"^(encoding: *gz|CompressedData *= *[t1])", re.IGNORECASE | re.MULTILINE)
_DATA_FILE = re.compile(rb"^(?:data ?file: *|ElementDataFile *= *)(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_HEADER_END = re.compile(rb"^ElementDataFile[^\n]*\n|\n\r?\n", re.MULTILINE)
_ANY_ZLIB = zlib.MAX_WBITS | 32
_MM = {1: 1000.0, 3: 0.001}  # in a meter and a micrometer, by their codes in xyzt_units
_AGAIN = "copy, download or export it again"
PROVENANCE = "monai_attn weights="  # how the provenance of a result begins
_NOT_OURS = (
    OSError, EOFError, AttributeError, pydicom.errors.InvalidDicomError, nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError, zlib.error,
)  # fmt: skip
_LOGGER = logging.getLogger(__name__)


def check_nifti(path: str) -> None:
    """Check a NIfTI file: undamaged, real-valued, fits in memory.

    Raises:
        DataError: if not, before memory is allocated for the voxels.
    """
    with open(path, "rb") as file:
        begin = file.read(nibabel.Nifti2Header.sizeof_hdr)
    compressed = begin.startswith(b"\x1f\x8b")
    if compressed and not path.lower().endswith(".gz"):
        raise DataError(path, "it is compressed by gzip, but its name does not end in .gz", f"rename it to {path}.gz")
    if not compressed and path.lower().endswith(".gz"):
        if _header_class(begin):
            raise DataError(path, "it is NIfTI, but not compressed by gzip", f"rename it to {path[:-3]}")
        raise DataError(path, f"it is neither gzip nor NIfTI; it begins with {_quote(begin)}", _AGAIN)
    try:
        end = _check_header(path, read_header(path))
        with _open(path) as file:
            held = file.seek(0, os.SEEK_END)  # reading gzip to its end verifies its checksum
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(path, f"it is damaged: {str(error).rstrip('.')}", _AGAIN) from error
    if held < end:
        raise DataError(path, f"it is cut off: its header promises {end:,} bytes, it holds {held:,}", _AGAIN)


def check_stream(path: str) -> None:
    """Verify the checksum of zlib or gzip voxels.

    Known are MetaImage and NRRD, whose header may name another file, and MGZ.

    Raises:
        DataError: if they are damaged or cut off.
    """
    head, is_mgz = b"", path.lower().endswith(".mgz")
    if path.lower().endswith(_HEADED):
        with open(path, "rb") as file:
            head = file.read(1 << 20)
    named, end = _DATA_FILE.search(head), _HEADER_END.search(head)
    apart = Path(path).parent / os.fsdecode(named[1]) if named and named[1].upper() != b"LOCAL" else None
    # a list or a pattern of files is left to the reader
    if not (is_mgz or _COMPRESSED.search(head)) or (apart is not None and not apart.is_file()):
        return
    stream, held, start = zlib.decompressobj(_ANY_ZLIB), 0, end.end() if end and not apart else 0
    try:
        with open(apart or path, "rb") as file:
            file.seek(start)
            while not stream.eof and (block := file.read(1 << 16)):
                held += len(stream.decompress(block))
            packed = file.tell() - start - len(stream.unused_data)
    except zlib.error as error:
        raise DataError(str(apart or path), f"it is damaged: {error}", _AGAIN) from error
    if not stream.eof:
        raise DataError(str(apart or path), "it is damaged: its compressed voxels are cut off", _AGAIN)
    said = re.search(rb"^CompressedDataSize *= *(\d+)\s*$", head, re.MULTILINE)
    if not is_mgz and (
        _promised(path) != held or (b"ElementDataFile" in head and not (said and int(said[1]) == packed))
    ):
        raise DataError(path, f"its header does not fit its voxels, {packed:,} bytes, {held:,} unpacked", _AGAIN)


def _promised(path: str) -> int:
    """Return the size of the voxels in bytes, as ITK reads the header."""
    image_io = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if image_io is None:
        return 0
    image_io.SetFileName(path)
    image_io.ReadImageInformation()
    return int(image_io.GetImageSizeInBytes())


def read_header(path: str) -> nibabel.Nifti1Header:
    """Read the uncorrected header of a NIfTI-1 or NIfTI-2 file.

    Raises:
        DataError: if it is no such header.
    """
    with _open(path) as file:
        block = file.read(nibabel.Nifti2Header.sizeof_hdr)
    header_class = _header_class(block)
    if header_class is None:
        raise DataError(path, f"its content is not NIfTI; it begins with {_quote(block)}", _AGAIN)
    return header_class(block[: header_class.sizeof_hdr], check=False)


def correct_affine(path: str, used: np.ndarray) -> np.ndarray:
    """Return a NIfTI affine in mm, and warn if inconsistent.

    Its unit may be another, its qform and sform may differ, and nibabel and MONAI replace it where spacing (pixdim),
    qform and sform contradict each other, or are not finite. A valid sform is used in any case, as nibabel does.
    """
    header = read_header(path)
    with np.errstate(all="ignore"):
        claimed = header.get_best_affine()
    is_odd = not np.allclose(claimed, used, rtol=1e-3, atol=1e-3)
    if is_odd and header["sform_code"] > 0 and np.isfinite(claimed).all() and np.linalg.det(claimed):
        used = claimed
    corrected = _scale(header) @ used
    if is_odd:
        message = "%s: its header contradicts itself (pixdim %s, qform_code %d, sform_code %d with rows %s); used: %s"
        pixdim, rows = (part.round(4).tolist() for part in (header["pixdim"][1:4], header.get_sform()[:3]))
        codes = header["qform_code"], header["sform_code"]
        _LOGGER.warning(message, path, pixdim, *codes, rows, describe_affine(corrected))
    if not np.array_equal(corrected, used):
        unit = header.get_xyzt_units()[0]
        _LOGGER.warning("%s: its unit is the %s; used: %s", path, unit, describe_affine(corrected))
    if forms := _different_forms(header):
        described = [f"{describe_affine(form)} (code {code})" for form, code in forms]
        message = "%s: its qform and sform differ, so programs show it in different places: %s; %s; used: %s"
        _LOGGER.warning(message, path, *described, describe_affine(corrected))
    return corrected


def forms_like(path: str, affine: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Return qform and sform, with codes, for a result.

    Those of the file are kept where they differ, so that every program shows the result on its image.
    """
    is_nifti = path.lower().endswith(NIFTI_SUFFIXES) and os.path.isfile(path)
    forms = _different_forms(read_header(path)) if is_nifti else []
    return forms if any(np.allclose(form, affine, atol=1e-3) for form, _ in forms) else [(affine, 1)] * 2


def _scale(header: nibabel.Nifti1Header) -> np.ndarray:
    """Return the matrix that converts a file's coordinates to mm."""
    return np.diag([_MM.get(int(header["xyzt_units"]) % 8, 1.0)] * 3 + [1.0])


def _different_forms(header: nibabel.Nifti1Header) -> list[tuple[np.ndarray, int]]:
    """Return qform and sform in mm with their codes, if both are valid and differ by more than a tenth of a voxel."""
    forms = []
    for read in (header.get_qform, header.get_sform):
        with suppress(ValueError, nibabel.spatialimages.HeaderDataError), np.errstate(all="ignore"):
            form, code = read(coded=True)
            if form is not None and np.isfinite(form).all():
                forms.append((_scale(header) @ form, int(code)))
    if len(forms) < 2:
        return []
    shape = [*header.get_data_shape(), 1, 1, 1][:3]
    corners = np.array([[*corner, 1] for corner in itertools.product(*((0, size) for size in shape))]).T
    apart = np.linalg.norm((forms[0][0] - forms[1][0]) @ corners, axis=0).max()
    return forms if apart > 0.1 * np.linalg.norm(forms[1][0][:, :3], axis=0).min() else []


def describe_affine(affine: np.ndarray) -> str:
    """Describe spacing, axes and origin of an affine.

    Example:
        >>> import numpy
        >>> describe_affine(numpy.diag([-1, 1, 2.5, 1]))
        'spacing 1 x 1 x 2.5 mm, axes LAS, origin (0, 0, 0)'
    """
    rank = len(affine) - 1
    spacing = " x ".join(f"{size:.4g}" for size in np.linalg.norm(affine[:rank, :rank], axis=0))
    singular = not np.isfinite(affine).all() or np.linalg.matrix_rank(affine) <= rank
    axes = "" if singular or rank != 3 else f", axes {''.join(nibabel.aff2axcodes(affine))}"
    origin = ", ".join(f"{value:.4g}" for value in affine[:rank, rank])
    return f"spacing {spacing} mm{axes}, origin ({origin})"


def _check_header(path: str, header: nibabel.Nifti1Header) -> int:
    """Raise if a header is invalid; return where the voxels should end in the file."""
    try:
        shape, dtype = header.get_data_shape(), header.get_data_dtype()
    except (nibabel.spatialimages.HeaderDataError, KeyError) as error:
        raise DataError(path, f"its header cannot be right: {error}", _AGAIN) from error
    size = " x ".join(map(str, shape))
    voxels = math.prod(map(int, shape))
    if min(shape) < 1:
        raise DataError(path, f"its header gives it the size {size}", _AGAIN)
    if dtype.fields:
        raise DataError(path, "its voxels are colors (RGB)", "save it as PNG, or one number for each voxel")
    if dtype.kind not in "iuf":
        raise DataError(path, f"its voxels are {dtype.name} numbers", "save the magnitude, or what you need of them")
    needed, memory = 4 * voxels / 2**30, _memory() / 2**30
    if needed > memory:
        problem = f"its header gives it the size {size}: {needed:,.0f} GB"
        problem += f", and this machine has {memory:,.0f} GB of memory"
        raise DataError(path, problem, "correct the header, or cut or resample the image")
    return int(header.get_data_offset()) + voxels * dtype.itemsize


def _header_class(block: bytes) -> type[nibabel.Nifti1Header] | None:
    classes = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    return next((header_class for header_class in classes if header_class.may_contain_header(block)), None)


def _open(path: str) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb"))


def _memory() -> float:
    """Return this machine's memory in bytes, infinite if unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return math.inf


def _quote(begin: bytes) -> str:
    return repr(begin[:16])[1:]


def provenance_of(path: str | Path) -> str:
    """Return the provenance saved in a file, if any.

    Example:
        ``provenance_of("out/case_1_seg.nii.gz")``
    """
    try:
        if str(path).endswith(".png"):
            with PILImage.open(path) as image:
                return image.info.get("Description", "")
        if str(path).endswith(".dcm"):
            segment = pydicom.dcmread(path, stop_before_pixels=True).SegmentSequence[0]
            parameters = segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
            return parameters.removeprefix("provenance=")
        header: Any = nibabel.load(path).header
        return header["descrip"].item().decode(errors="replace") if "descrip" in header else ""
    except _NOT_OURS:
        return ""


def is_result(path: str | Path) -> bool:
    """Return whether a segmentation has written a mask."""
    return "_seg." in Path(path).name and provenance_of(path).startswith(PROVENANCE)
