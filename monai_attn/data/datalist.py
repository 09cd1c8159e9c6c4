# SPDX-License-Identifier: Apache-2.0
"""Data lists, which pair images and labels by name."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any
from zlib import crc32

from monai.data import partition_dataset
from monai.transforms import LoadImage
from monai.utils import ensure_tuple

from monai_attn.data import layouts
from monai_attn.data.dicom import is_dicom
from monai_attn.data.formats import is_result
from monai_attn.data.layouts import Sections, case_name, read_sections
from monai_attn.data.reader import CheckingReader
from monai_attn.errors import DataError
from monai_attn.files import content_of, first_of, refuse_folder, say, say_left_out

__all__ = ["case_name", "case_names", "cases", "common_root", "find_image", "find_images", "locate"]
__all__ += ["structure_names", "training_cases"]

_VALIDATION_FRACTION = 0.2
_SLICE = re.compile(r"(.+)[_-](slice|slc?|frame|z|b)[_-]?[0-9]+", re.IGNORECASE)
_LABEL_FOLDER = re.compile(r"(segs?|segmentations?|labels?|masks?|gts?|ground[_ -]?truths?)(tr|ts)?", re.IGNORECASE)


def case_names(paths: Iterable[str | Path]) -> dict[str, str]:
    """Return case names by path, with folders where names repeat.

    If names still repeat, as for ``a_b/t1`` and ``a/b/t1``, a hash of the path below the common folder is added.

    Example:
        >>> case_names(["data/a/t1.nii.gz", "data/b/t1.nii.gz"])
        {'data/a/t1.nii.gz': 'a_t1', 'data/b/t1.nii.gz': 'b_t1'}
    """
    files = [str(path) for path in dict.fromkeys(paths)]
    names = [case_name(file) for file in files]
    if len(set(names)) < len(names):
        root = common_root([{"image": file} for file in files])
        places = [Path(file).absolute().relative_to(root) for file in files]
        names = ["_".join([*place.parent.parts, name]) for place, name in zip(places, names)]
        number = Counter(names)
        names = [name + f"_{crc32(os.fsencode(place)):08x}" * (number[name] > 1) for place, name in zip(places, names)]
    return dict(zip(files, names))


def cases(dataset_dir: str | Path, section: str = "training") -> list[dict[str, Any]]:
    """Return a section's cases as dictionaries of absolute paths.

    Their keys are ``image`` and, where there is one, ``label``. The data list is a ``dataset.json`` (Medical
    Segmentation Decathlon, nnU-Net, Auto3DSeg) or ``dataset.csv``, else the folders ``images`` and ``labels`` (or
    ``imagesTr`` and ``labelsTr``), paired by case name, or a folder for each case. Without a section ``validation``, a
    fixed random fifth of the training cases is held out for it; cases of one ``group`` stay together, and so do slices
    of a patient (``patient1_slice01``, ``_z01``, ``_b01``).

    Args:
        dataset_dir: folder of the data set.
        section: ``"training"``, ``"validation"`` or ``"test"``.

    Raises:
        DataError: if the folder or the section is missing or empty, if cases are listed under an unknown section, if a
            listed file does not exist, if its path is relative and leads out of the folder, or if a label is listed
            with one case but named after another.

    Example:
        ``cases("/data/hippocampus", "validation")[0]["image"]``
    """
    folder = Path(dataset_dir).absolute()
    sections = read_sections(folder)
    training = sections.get("training", [])
    if section in ("training", "validation") and training and "validation" not in sections:
        sections |= _hold_out(training)
    _say_if_shared(folder, sections)
    if sections.get(section):
        own = ("fold", "group")
        return [{key: value for key, value in item.items() if key not in own} for item in sections[section]]
    if section == "validation" and training:
        patients = len({*_patients(training, 3)})
        few = f" of {patients} patients" if patients < len(training) else ""
        problem = f"it has {len(training)} cases{few} for training, and at least 3 are needed to set some apart"
        raise DataError(str(folder), problem, "add cases, or list others under 'validation' in dataset.json")
    counts = ", ".join(f"{len(items)} {name}" for name, items in sections.items()) or "none"
    fix = f"list them under '{section}' in dataset.json, or give another dataset_dir"
    raise DataError(str(folder), f"it has no cases for '{section}' (found: {counts})", fix)


def training_cases(dataset_dir: str | Path) -> list[dict[str, Any]]:
    """Return the training cases, which must have non-empty labels.

    Labels are read until one is not empty, usually the first.

    Raises:
        DataError: see :func:`cases`; also if a case has no label, or if all labels are empty.

    Example:
        ``training_cases("/data/hippocampus")[0]["label"]``
    """
    found = cases(dataset_dir)
    lonely = [case_name(ensure_tuple(item["image"])[0]) for item in found if "label" not in item]
    if lonely:
        problem = f"{len(lonely)} of its {len(found)} cases for training have no label: {', '.join(lonely[:5])}"
        raise DataError(str(dataset_dir), problem, "list their labels, or list them under 'test'")
    load = LoadImage(image_only=True)
    if not any((load(item["label"], CheckingReader()) > 0).any() for item in found):
        problem = f"the labels of all its {len(found)} cases for training are empty"
        raise DataError(str(dataset_dir), problem, "give labels with structures to learn")
    return found


def find_images(source: str | Path | Sequence[str | Path]) -> list[dict[str, Any]]:
    """Find the images to segment, each a dictionary with ``image``.

    Args:
        source: an image file, a data set with a data list (its test cases, else its validation cases), or any other
            folder, which is searched for images and folders of DICOM slices, recognized by their content. Links are
            followed. Labels, hidden folders and files that are not images are left out, with a warning. A list of files
            is one image with a file for each channel, such as the modalities of MRI.

    Raises:
        DataError: if there is no image, or more than one for a channel.

    Example:
        ``find_images("my_scans")``, ``find_images(["case_1_t1c.nii.gz", "case_1_flair.nii.gz"])``
    """
    if isinstance(source, (list, tuple)):
        return [{"image": [find_image(file)["image"] for file in source]}]
    path = Path(str(source)).absolute()
    path = path.parent if path.name in layouts.LISTINGS else path
    if not path.exists():
        raise DataError(str(path), "there is no such file or folder", "give an image, a DICOM folder or a data set")
    if any((path / name).is_file() for name in layouts.LISTINGS):
        chosen = read_sections(path).get("test") or cases(path, "validation")
        return [{"image": item["image"]} for item in chosen]
    if path.is_file():
        return [{"image": str(path)}]
    images = _walk(path)
    labels = _find_labels(images, path)
    say_left_out(path, labels, "labels or results")
    found = [image for image in images if image not in {*labels}]
    with suppress(DataError):
        joined = [{"image": item["image"]} for items in layouts.case_folders(path, images).values() for item in items]
        if any(len(item["image"]) > 1 for item in joined):
            files = {file for item in joined for file in item["image"]}
            say_left_out(path, [image for image in found if str(image) not in files], "not of a case")
            return joined
    if not found:
        problem = f"it holds no image ({', '.join(layouts.IMAGE_SUFFIXES)}, DICOM); it holds: {content_of(path)}"
        raise DataError(str(path), problem, "give the folder of the images")
    return [{"image": str(file)} for file in found]


def find_image(source: str | Path | Sequence[str | Path]) -> dict[str, Any]:
    """Find the one image in a source, see :func:`find_images`.

    Raises:
        DataError: if there is none, or more than one.

    Example:
        ``find_image("my_scans/series_1")``
    """
    image, *others = find_images(source)
    if others:
        problem = f"it holds {1 + len(others)} images where one is expected"
        raise DataError(str(source), problem, "give one of them; `monai-attn segment` takes folders")
    return image


def _find_labels(images: Sequence[Path], root: Path) -> list[Path]:
    """Return those of the images that are labels, by their names or folders, or written by a segmentation."""
    masks = [str(path) for path in images if is_result(path)]
    ours = tuple(mask.rpartition("_seg.")[0] + kind for mask in masks for kind in ("_seg.", "_overlay.", "_attention"))
    results = {path for path in images if str(path).startswith(ours)}
    named = {path for path in images if layouts.LABEL.fullmatch(case_name(path))}
    beside = {path.parent for path in images if path not in named | results}
    within = {path for path in images if any(map(_LABEL_FOLDER.fullmatch, path.relative_to(root).parts[:-1]))}
    return [path for path in images if path in within | results or (path in named and path.parent in beside)]


def _walk(root: Path) -> list[Path]:
    """Return the images below a folder, those of DICOM as their folders; say which files are none.

    Links are followed, but no folder is entered twice. Beside a series, pictures are previews.
    """
    lists: tuple[list[Path], ...] = ([], [], [])
    (images, others, hidden), seen = lists, set[str]()
    for name, folders, files in os.walk(root, onerror=refuse_folder, followlinks=True):
        folder, real = Path(name), os.path.realpath(name)
        hidden += [folder / part for part in folders if part.startswith(".")]
        folders[:] = [] if real in seen else sorted(part for part in folders if not part.startswith("."))
        paths = [] if real in seen else [folder / file for file in sorted(files) if not file.startswith(".")]
        seen.add(real)
        own = [path for path in paths if layouts.is_image(path)]
        slices = [path for path in paths if path not in own and _is_slice(path)]
        previews = [path for path in own if path.name.lower().endswith(layouts.PICTURE_SUFFIXES)]
        previews = previews if len(slices) >= len(previews) and slices else []
        used = [path for path in own if path not in previews]
        data = {path.with_name(case_name(path) + ending) for path in used for ending in layouts.VOXEL_SUFFIXES}
        others += [path for path in paths if path not in data.union(used, slices)]
        images += [folder] * bool(slices) + used
    say_left_out(root, others, "no images")
    say_left_out(root, hidden, "hidden")
    return sorted(images)


def _is_slice(path: Path) -> bool:
    with suppress(OSError):  # a link that leads nowhere
        is_other = path.name == "DICOMDIR" or path.name.endswith("_seg.dcm")  # a result
        return not is_other and (is_dicom(path) or path.name.lower().endswith((".dcm", ".ima")))
    return False


def common_root(items: Sequence[Mapping[str, Any]]) -> str:
    """Return the deepest folder that holds all images.

    Results written relative to it keep their subfolders, so that equal file names do not collide.

    Example:
        >>> common_root([{"image": "/data/a/t1.nii.gz"}, {"image": "/data/b/t1.nii.gz"}])
        '/data'
    """
    folders = [str(Path(ensure_tuple(item["image"])[0]).absolute().parent) for item in items]
    return os.path.commonpath(folders) if folders else ""


def locate(*names: str) -> str:
    """Return a data set's folder in ``$MONAI_DATA_DIRECTORY`` (default ``data``).

    Args:
        names: folder names to look for in order; if none exists, the last is returned.

    Example:
        ``locate("hippocampus", "Task04_Hippocampus")``
    """
    root = Path(os.environ.get("MONAI_DATA_DIRECTORY", "data"))
    found = (root / name for name in names if (root / name).is_dir())
    return str(next(found, root / names[-1]))


def structure_names(dataset_dir: str | Path) -> dict[int, str]:
    """Return the names of label values in a ``dataset.json``.

    Example:
        ``structure_names("data/hippocampus")`` is ``{1: "anterior", 2: "posterior"}``.
    """
    listing = Path(dataset_dir) / "dataset.json"
    labels = layouts.read_listing(listing).get("labels") if listing.is_file() else None
    pairs = labels.items() if isinstance(labels, dict) else ()
    try:  # the Decathlon has names by values, nnU-Net values by names
        named = dict((int(a), str(b)) if str(a).isdigit() else (int(b), str(a)) for a, b in pairs)
    except (TypeError, ValueError):  # regions
        return {}
    return {value: named[value] for value in sorted(named) if value > 0}


def _hold_out(training: Sequence[dict[str, Any]]) -> Sections:
    """Divide patients into training and validation."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for patient, item in zip(_patients(training, 3), training):
        groups.setdefault(patient, []).append(item)
    ratios = [1 - _VALIDATION_FRACTION, _VALIDATION_FRACTION]
    parts = partition_dataset([*groups.values()], ratios=ratios, shuffle=True, seed=0)
    return dict(zip(("training", "validation"), (list(chain(*part)) for part in parts)))


def _patients(items: Sequence[Mapping[str, Any]], least: int) -> list[str]:
    """Return the patient of each case.

    That is its ``group``. Without it, cases are slices of patients if all of their names end in ``_slice12``, ``_z12``
    or ``_b12`` and there are ``least`` different names before it; else each is a patient.
    """
    files = [ensure_tuple(item["image"])[0] for item in items]
    matches = [_SLICE.fullmatch(case_name(file)) for file in files]
    slices = all(matches) and len({match[1] for match in matches if match}) >= least
    names = [match[1] if match and slices else os.path.realpath(file) for match, file in zip(matches, files)]
    return [name if item.get("group") in (None, "") else str(item["group"]) for item, name in zip(items, names)]


def _say_if_shared(folder: Path, sections: Sections) -> None:
    """Warn if a patient is in several sections."""
    pairs = [(section, item) for section, items in sections.items() for item in items]
    places: dict[str, set[str]] = {}
    for (section, _), patient in zip(pairs, _patients([item for _, item in pairs], 2)):
        places.setdefault(patient, set()).add(section)
    shared = [f"{patient} ({', '.join(sorted(found))})" for patient, found in places.items() if len(found) > 1]
    if shared:
        say(f"{folder}: patients in several sections, which flatters the scores: {first_of(shared)}")
