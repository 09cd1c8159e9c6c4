# SPDX-License-Identifier: Apache-2.0
"""Data lists, which pair images and labels by name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import load_decathlon_datalist, partition_dataset
from monai.transforms import LoadImage
from monai.utils import ensure_tuple

from monai_attn.data.reader import CheckingReader
from monai_attn.errors import DataError

__all__ = ["case_name", "case_names", "cases", "common_root", "find_images", "locate", "training_cases"]

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mgz", ".nrrd", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
_FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
_SECTIONS = ("training", "validation", "test")
_VALIDATION_FRACTION = 0.2


def case_name(path: str | Path) -> str:
    """Return a case's name, its file name without extension.

    Example:
        >>> case_name("/data/images/hippocampus_014.nii.gz")
        'hippocampus_014'
    """
    name = Path(path).name
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), Path(name).suffix)
    return name[: len(name) - len(suffix)]


def case_names(paths: Iterable[str | Path]) -> dict[str, str]:
    """Return case names by path, with folders where names repeat.

    Example:
        >>> case_names(["data/a/t1.nii.gz", "data/b/t1.nii.gz"])
        {'data/a/t1.nii.gz': 'a_t1', 'data/b/t1.nii.gz': 'b_t1'}
    """
    files = [str(path) for path in dict.fromkeys(paths)]
    names = [case_name(file) for file in files]
    if len(set(names)) < len(names):
        root = common_root([{"image": file} for file in files])
        folders = [Path(file).absolute().parent.relative_to(root) for file in files]
        names = ["_".join([*folder.parts, name]) for folder, name in zip(folders, names)]
    return dict(zip(files, names))


def cases(dataset_dir: str | Path, section: str = "training") -> list[dict[str, Any]]:
    """Return a section's cases as dictionaries of absolute paths.

    Their keys are ``image`` and, where there is one, ``label``. The data list is ``dataset.json`` in the layout of the
    Medical Segmentation Decathlon, else the folders ``images`` and ``labels`` (or ``imagesTr`` and ``labelsTr``),
    paired by case name. Without a section ``validation``, a fixed random fifth of the training cases is held out for
    it.

    Args:
        dataset_dir: folder of the data set.
        section: ``"training"``, ``"validation"`` or ``"test"``.

    Raises:
        DataError: if the folder or the section is missing or empty, if a listed file does not exist, if its path is
            relative and leads out of the folder, or if a label is listed with one case but named after another.

    Example:
        ``cases("/data/hippocampus", "validation")[0]["image"]``
    """
    folder = Path(dataset_dir).absolute()
    sections = _read_sections(folder)
    training = sections.get("training", [])
    if section in ("training", "validation") and training and "validation" not in sections:
        ratios = [1 - _VALIDATION_FRACTION, _VALIDATION_FRACTION]
        kept, held_out = partition_dataset(training, ratios=ratios, shuffle=True, seed=0)
        sections |= {"training": kept, "validation": held_out}
    if sections.get(section):
        return sections[section]
    if section == "validation" and training:
        problem = f"it has {len(training)} cases for training, and at least 3 are needed to set some apart"
        raise DataError(str(folder), problem, "add cases, or list others under 'validation' in dataset.json")
    counts = ", ".join(f"{len(items)} {name}" for name, items in sections.items()) or "none"
    raise DataError(
        str(folder),
        f"it has no cases for '{section}' (found: {counts})",
        f"list them under '{section}' in dataset.json, or give another dataset_dir",
    )


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
        source: an image file, a DICOM series (a folder of .dcm files), a data set with a ``dataset.json`` (its test
            cases, else its validation cases), or any other folder, searched recursively, without the segmentations of
            KiTS beside its images. A list of files is one image with a file for each channel, such as the modalities
            of MRI.

    Raises:
        DataError: if there is no image.

    Example:
        ``find_images("my_scans")``, ``find_images(["case_1_t1c.nii.gz", "case_1_flair.nii.gz"])``
    """
    if not isinstance(source, (str, Path)):
        return [{"image": [find_images(file)[0]["image"] for file in source]}]
    path = Path(source).absolute()
    if not path.exists():
        raise DataError(str(path), "there is no such file or folder", "give an image, a DICOM folder or a data set")
    if (path / "dataset.json").is_file():
        chosen = _read_sections(path).get("test") or cases(path, "validation")
        return [{"image": item["image"]} for item in chosen]
    if path.is_file() or any(path.glob("*.dcm")):
        return [{"image": str(path)}]
    found = sorted(filter(_is_image, path.rglob("*")))
    scans = {file.parent for file in found if case_name(file) == "imaging"}
    found = [file for file in found if case_name(file) != "segmentation" or file.parent not in scans]
    if not found:
        problem = f"it holds no image ({', '.join(IMAGE_SUFFIXES)}); it holds: {_content(path)}"
        raise DataError(str(path), problem, "give the folder of the images")
    return [{"image": str(file)} for file in found]


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


def _is_image(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(IMAGE_SUFFIXES)


def _content(folder: Path) -> str:
    present = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(present[:5]) or "nothing"


def _read_sections(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the cases of a data set by section, before holding any out."""
    listing = folder / "dataset.json"
    if listing.is_file():
        return _read_listing(listing)
    for images, labels in _FOLDERS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return {"training": _pair(_index(folder / images), _index(folder / labels))}
    problem = f"it has neither a dataset.json nor folders images and labels; it holds: {_content(folder)}"
    raise DataError(str(folder), problem, "give the folder of the data set as dataset_dir")


def _index(folder: Path) -> dict[str, str]:
    index: dict[str, str] = {}
    for path in map(str, sorted(filter(_is_image, folder.iterdir()))):
        name = case_name(path)
        if name in index:
            raise DataError(path, f"case '{name}' is also in {index[name]}", "give every case a name of its own")
        index[name] = path
    return index


def _pair(images: dict[str, str], labels: dict[str, str]) -> list[dict[str, Any]]:
    for paths, others, other in ((images, labels, "label"), (labels, images, "image")):
        lonely = sorted(set(paths) - set(others))
        if lonely:
            more = f" (and {len(lonely) - 1} more: {', '.join(lonely[1:6])})" if len(lonely) > 1 else ""
            problem = f"there is no {other} named '{lonely[0]}'{more}"
            raise DataError(paths[lonely[0]], problem, f"add the {other} or move the file")
    return [{"image": images[name], "label": labels[name]} for name in sorted(images)]


def _read_listing(listing: Path) -> dict[str, list[dict[str, Any]]]:
    fix = "correct or download the file again"
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(str(listing), f"it is not valid JSON: {error}", fix) from error
    if not isinstance(content, dict):
        raise DataError(str(listing), f"it holds a {type(content).__name__}, not the object of a data set", fix)
    sections = {}
    for name in _SECTIONS:
        if content.get(name):
            for path in _strings(content[name]):
                if os.path.normpath(path).split(os.sep)[0] == os.pardir:
                    problem = f"{listing} lists it, and it leads out of that folder"
                    raise DataError(path, problem, "give an absolute path instead")
            sections[name] = load_decathlon_datalist(str(listing), data_list_key=name)
            _check_files(sections[name], listing)
    return sections


def _strings(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, (dict, list)):
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from _strings(part)


def _check_files(items: list[dict[str, Any]], listing: Path) -> None:
    """Raise unless all listed files exist, and no label is named after another case."""
    owners = {}
    for item in items:
        if "image" not in item:
            raise DataError(str(listing), f"the case {item} has no 'image'", "give every case an image")
        for path in ensure_tuple(item["image"]) + ensure_tuple(item.get("label", ())):
            if not Path(path).exists():
                raise DataError(path, f"{listing} lists it, but it is not there", "restore it or correct the list")
        owners[case_name(ensure_tuple(item["image"])[0])] = item
    for item in items:
        if owners.get(case_name(item.get("label", "")), item) is not item:
            problem = f"{listing} pairs it with {item['image']}, but it is named after another case"
            raise DataError(item["label"], problem, "correct the list")
