# SPDX-License-Identifier: Apache-2.0
"""Place the slices of DICOM files, and write DICOM SEG."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import itk
import numpy as np
import pydicom
from pydicom.misc import is_dicom

from monai_attn.data.formats import describe_affine
from monai_attn.errors import DataError
from monai_attn.files import content_of

__all__ = ["check_series", "is_dicom", "place_slices", "write_segmentation"]

# MONAI says for every transform that loads, once pydicom is there, that its decoder for GPUs is not
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)
logging.getLogger("highdicom").setLevel(logging.ERROR)  # it tells every step
warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader: nvImageCodec decoder plugin did not register")

_CLASS_TAG = b"\x02\x00\x02\x00UI"  # (0002,0002), the kind of object
_GROUPS = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
_PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
_STEP_TOLERANCE = 0.1  # of the usual distance of slices
_NOT_PARALLEL = 1e-3  # of a pixel
_MOST_SHIFT = 0.5  # of a pixel, or of the distance of slices
_MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_ANY_STRUCTURE = {"category": ["91723000", "Anatomical Structure"], "type": ["91723000", "Anatomical Structure"]}
_LOGGER = logging.getLogger(__name__)


def check_series(folder: Path) -> list[Path]:
    """Check a folder's DICOM series and return its ordered slices.

    There must be one series without gaps. Subfolders and other files are ignored.

    Raises:
        DataError: if there is no series or more than one, if a slice cannot be read, or if slices are missing,
            doubled, unevenly spaced, not parallel or shifted against each other.

    Example:
        ``check_series(Path("scans/patient_1"))``
    """
    names = itk.GDCMSeriesFileNames.New()  # tells series apart as MONAI's ITKReader does
    names.SetUseSeriesDetails(True)
    names.AddSeriesRestriction("0008|0021")
    names.SetDirectory(str(folder))
    series = [[Path(name) for name in names.GetFileNames(uid)] for uid in names.GetSeriesUIDs()]
    if not series:
        problem = f"no DICOM image in it can be read; it holds: {content_of(folder)}"
        raise DataError(str(folder), problem, "give another folder")
    _check_readable(folder, {file for files in series for file in files})
    if len(series) > 1:
        listed = "; ".join(map(_describe_series, series))
        problem = f"it holds {len(series)} DICOM series: {listed}"
        raise DataError(str(folder), problem, "move the files of one into their own folder")
    _read_frames(folder, series[0])
    return series[0]


def place_slices(image: Any, path: Path) -> Any:
    """Place the slices of an ITK image by DICOM tags.

    ITK trusts ``SpacingBetweenSlices``, even if negative, and assumes that frames are ordered and evenly spaced.

    Raises:
        DataError: if the slices lie on no grid, see :func:`check_series`.
    """
    if not (path.is_dir() or is_dicom(path)):
        return image
    frames, size = _read_frames(path, check_series(path) if path.is_dir() else [path]), np.array(itk.size(image))
    if len(size) < 3 or (size[2] == 1 and not len(frames)):
        return image
    if len(frames) != size[2]:
        problem = f"it has {size[2]} frames, and positions of {len(frames)}"
        raise DataError(str(path), problem, "export it again, with the position of every frame")
    along = _along_normal(frames)
    order = np.argsort(along) if (np.diff(along) > 0).any() else np.arange(len(along))
    found = np.column_stack([itk.array_from_matrix(image.GetDirection()) * image.GetSpacing(), image.GetOrigin()])
    (corner, *axes), last = frames[order[0]], frames[order[-1], 0]
    normal = np.cross(*axes) / np.linalg.norm(np.cross(*axes))
    step = (last - corner) @ normal / (size[2] - 1) if size[2] > 1 else image.GetSpacing()[2]
    placed = np.column_stack([*axes, step * normal, corner])
    errors = np.linalg.norm((found - placed) * [*size, 1], axis=0)
    if (order != np.arange(len(order))).any() or errors.max() > _STEP_TOLERANCE * abs(step):
        image = itk.image_from_array(np.ascontiguousarray(itk.array_from_image(image)[order]))
        lengths = np.linalg.norm(placed[:, :3], axis=0)
        image.SetSpacing(lengths)
        image.SetDirection(itk.matrix_from_array(placed[:, :3] / lengths))
        image.SetOrigin(corner)
        used = describe_affine(np.diag([-1, -1, 1, 1]) @ np.vstack([placed, [0, 0, 0, 1]]))
        _LOGGER.warning("%s: its slices do not lie as its header says; placed by their positions: %s", path, used)
    return image


def write_segmentation(
    file: Path, labels: np.ndarray, affine: np.ndarray, source: Path, *,
    class_names: Sequence[str], bundle: Mapping[str, Any], provenance: str = "",
) -> bool:  # fmt: skip
    """Write a DICOM SEG; return whether it reads back equal.

    Args:
        file: where to write it.
        labels: label map (x, y, z) or (x, y) on the grid of the series.
        affine: its affine (4, 4), RAS.
        source: DICOM file or folder.
        class_names: names of the label values 1, 2, …; see :class:`monai_attn.transforms.SafeSaveImage`.
        bundle: the bundle's metadata: ``name``, ``version``, and ``segment_codes`` of the output ``pred``, SNOMED CT
            codes of structures by their names.
        provenance: text to be read back by :func:`monai_attn.transforms.provenance_of`.

    Raises:
        DataError: if the tags of the series do not allow a SEG.

    Example:
        ``write_segmentation(Path("seg.dcm"), labels, affine, Path("scan"), class_names=["liver"], bundle=metadata)``
    """
    import highdicom  # when it is needed, for a quick start of everything else

    files = check_series(source) if source.is_dir() else [source]
    images = [pydicom.dcmread(path, force=True, stop_before_pixels=True) for path in files]
    for keyword in _MAY_BE_EMPTY:  # highdicom wants them there
        images[0].setdefault(keyword, None)
    labels = np.atleast_3d(labels).astype(np.uint8)
    places = [0]
    if labels.shape[2] > 1:  # the reader may have put them into another order
        to_voxels = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ affine)
        places = [round((to_voxels @ [*frame[0], 1])[2]) for frame in _read_frames(source, files)]
    found = [int(value) for value in np.unique(labels) if value]
    named = {value: name for value, name in enumerate(class_names, 1) if name != "unused" or value in found}
    names = {value: f"label {value}" for value in found} | named
    numbers = np.zeros(256, np.uint8)
    numbers[list(names)] = range(1, len(names) + 1)
    try:
        segmentation = highdicom.seg.Segmentation(
            images, numbers[labels[:, :, places].transpose(2, 1, 0)], "BINARY",
            _describe_segments(list(names.values()), bundle, provenance),
            series_instance_uid=highdicom.UID(), series_number=1000 + int(images[0].get("SeriesNumber") or 0),
            series_description=bundle["name"][:64], sop_instance_uid=highdicom.UID(), instance_number=1,
            manufacturer="monai_attn", manufacturer_model_name=bundle["name"][:64],
            software_versions=bundle["version"], device_serial_number="1",
        )  # fmt: skip
    except (AttributeError, TypeError, ValueError) as error:
        problem = f"no DICOM SEG can refer to it: {' '.join(str(error).split())}"
        raise DataError(str(source), problem, "export the series again, or leave --dicom_seg out") from error
    segmentation.save_as(file)
    return np.array_equal(pydicom.dcmread(file).pixel_array, segmentation.pixel_array)


def _describe_segments(names: Sequence[str], bundle: Mapping[str, Any], provenance: str) -> list[Any]:
    import highdicom

    codes = bundle["network_data_format"]["outputs"]["pred"].get("segment_codes", {})
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=bundle["name"][:64], family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version=bundle["version"], source="monai_attn", parameters={"provenance": provenance},
    )  # fmt: skip
    segments = []
    for number, name in enumerate(names, 1):
        coded = codes.get(name, _ANY_STRUCTURE).items()
        concepts = {part: highdicom.sr.CodedConcept(value, "SCT", meaning) for part, (value, meaning) in coded}
        kinds = (concepts["category"], concepts["type"], "AUTOMATIC")
        segment = highdicom.seg.SegmentDescription(number, name[:64], *kinds, algorithm)
        if "modifier" in concepts:
            (kind,) = segment.SegmentedPropertyTypeCodeSequence
            kind.SegmentedPropertyTypeModifierCodeSequence = [concepts["modifier"]]
        segments.append(segment)
    return segments


def _describe_series(files: Sequence[Path]) -> str:
    data = pydicom.dcmread(files[0], force=True, stop_before_pixels=True)
    description = data.get("SeriesDescription") or "no description"
    return f"{data.get('SeriesInstanceUID')} ({description}: {len(files)} files, {files[0].name} …)"


def _read_frames(path: Path, files: Sequence[Path]) -> np.ndarray:
    """Return the places of slices (N, 3, 3) in mm: first pixel, step in a row, step in a column.

    There are none if the only file does not tell them.
    """
    frames = []
    for file in files:
        data = pydicom.dcmread(file, force=True, stop_before_pixels=True)
        shared = [*(data.get("SharedFunctionalGroupsSequence") or ())]
        for own in data.get("PerFrameFunctionalGroupsSequence") or [pydicom.Dataset()]:
            groups = [group for part in (own, *shared) for key in _GROUPS for group in part.get(key) or ()] + [data]
            tags = [next((group[key].value for group in groups if group.get(key)), None) for key in _PLACE]
            if all(tags):
                position, axes, spacing = (np.array(tag, float) for tag in tags)
                frames.append([position, axes[:3] * spacing[1], axes[3:] * spacing[0]])
            elif len(files) > 1:
                raise DataError(str(file), f"it has no {_PLACE[tags.index(None)]}", "export the series again")
    places = np.array(frames).reshape(-1, 3, 3)
    if len(places) > 1:
        _check_places(path, places)
    return places


def _along_normal(frames: np.ndarray) -> np.ndarray:
    normal = np.cross(*frames[0, 1:])
    return (frames[:, 0] - frames[0, 0]) @ normal / np.linalg.norm(normal)


def _check_readable(folder: Path, read: set[Path]) -> None:
    """Raise if a file of the same kind of image as the slices was not read."""
    kinds = {_object_class(file) for file in read} - {None}
    lost = sorted(file.name for file in folder.iterdir() if file not in read and _object_class(file) in kinds)
    if lost:
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        problem = f"this slice{more} of the series is damaged or cut off"
        raise DataError(str(folder / lost[0]), problem, "copy or export it again")


def _object_class(file: Path) -> bytes | None:
    """Return the SOP class UID of a DICOM file, or None for other files."""
    if not file.is_file():
        return None
    with file.open("rb") as content:
        head = content.read(1024)
    _, found, rest = head.partition(_CLASS_TAG)
    if head[128:132] != b"DICM" or not found:
        return None
    length = int.from_bytes(rest[:2], "little")
    return rest[2 : 2 + length].rstrip(b"\0 ")


def _check_places(path: Path, frames: np.ndarray) -> None:
    """Raise unless slices are parallel, evenly spaced and straight above each other."""
    pixel = np.linalg.norm(frames[0, 1:], axis=1)
    if np.ptp(frames[:, 1:], axis=0).max() > _NOT_PARALLEL * pixel.min():
        problem = "its slices are not parallel, or differ in the size of their pixels"
        raise DataError(str(path), problem, "give those of one direction alone")
    along, corners = _along_normal(frames), frames[:, 0]
    normal = np.cross(*frames[0, 1:]) / np.prod(pixel)
    shifts = np.linalg.norm(corners - corners[0] - np.outer(along, normal), axis=1)
    if shifts.max() > _MOST_SHIFT * pixel.min():
        problem = f"its slices are shifted against each other, by up to {shifts.max():.2f} mm (tilted gantry?)"
        raise DataError(str(path), problem, "resample it to a rectangular grid, as dcm2niix does")
    positions = np.sort(along + corners[0] @ normal)
    steps = np.diff(positions)
    apart = steps[steps > 0]
    usual = float(np.median(apart)) if len(apart) else 0.0
    (odd,) = np.nonzero((np.abs(steps - usual) > _STEP_TOLERANCE * usual) | (steps <= _STEP_TOLERANCE * usual))
    bent = np.abs(positions - np.linspace(positions[0], positions[-1], len(positions)))
    if not len(odd) and bent.max() <= _MOST_SHIFT * usual:
        return
    place = int(odd[0]) if len(odd) else min(int(bent.argmax()), len(steps) - 1)
    below, above, step = positions[place], positions[place + 1], steps[place]
    if step <= _STEP_TOLERANCE * usual:
        problem = f"two slices lie at {below:.2f} mm"
    elif (missing := round(step / usual) - 1) > 0:
        problem = f"{missing} missing between the slices at {below:.2f} and {above:.2f} mm"
    else:
        problem = f"the slices at {below:.2f} and {above:.2f} mm are {step:.2f} mm apart"
    more = f" (and {len(odd) - 1} more such places)" if len(odd) > 1 else ""
    problem = f"its slices are not evenly spaced, every {usual:.2f} mm: {problem}{more}"
    raise DataError(str(path), problem, "export the series again, or remove the odd slices")
