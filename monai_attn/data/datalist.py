# SPDX-License-Identifier: Apache-2.0
"""Which image belongs to which label: cases are found by their names, never by zipping two sorted lists."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import load_decathlon_datalist, partition_dataset
from monai.transforms import LoadImage
from monai.utils import ensure_tuple

from monai_attn.data.reader import CheckingReader
from monai_attn.errors import DataError

__all__ = [
    "case_name",
    "case_names",
    "cases",
    "common_root",
    "find_images",
    "locate",
    "pair_by_name",
    "training_cases",
]

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
_FOLDERS = (("images", "labels"), ("imagesTr", "labelsTr"))
_VALIDATION_FRACTION = 0.2


def case_name(path: str | Path) -> str:
    """The name of a case: the file name without its ending.

    Example:
        >>> case_name("/data/images/hippocampus_014.nii.gz")
        'hippocampus_014'
    """
    name = Path(path).name
    for suffix in IMAGE_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return Path(name).stem


def case_names(paths: Iterable[str | Path]) -> dict[str, str]:
    """A name for each of several cases: that of its file or, where two files share one, of its folder and file.

    Args:
        paths: the image of each case.

    Returns:
        for each path its name.

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
    """The cases of one section of a data set, as dictionaries of absolute paths.

    A ``dataset.json`` in the layout of the Medical Segmentation Decathlon is followed if it is there, else the folders
    ``images`` and ``labels`` (or ``imagesTr`` and ``labelsTr``) are paired by case name. A data set without a section
    ``validation`` has every fifth of its training cases set apart for it, the same ones every time.

    Args:
        dataset_dir: folder of the data set.
        section: ``"training"``, ``"validation"`` or ``"test"``.

    Returns:
        dictionaries with ``image`` and, where there is one, ``label``.

    Raises:
        DataError: if the folder or the section is missing or empty, if a listed file does not exist, if its path is
            relative and leads out of the folder, or if a label is listed with one case but named after another.

    Example:
        ``cases("/data/hippocampus", "validation")[0]["image"]``
    """
    folder = Path(dataset_dir).absolute()
    listing = folder / "dataset.json"
    sections = _read_listing(listing) if listing.is_file() else {"training": _pair_folders(folder)}
    if section in ("training", "validation") and "validation" not in sections and sections.get("training"):
        kept, held_out = partition_dataset(
            sections["training"], ratios=[1 - _VALIDATION_FRACTION, _VALIDATION_FRACTION], shuffle=True, seed=0
        )
        sections = {**sections, "training": kept, "validation": held_out}
    found = sections.get(section, [])
    if not found and section == "validation" and sections.get("training"):
        raise DataError(
            str(folder),
            f"it has {len(sections['training'])} cases for training, and at least 3 are needed to set some apart",
            f"add cases, or list others under 'validation' in {listing.name}",
        )
    if not found:
        counts = ", ".join(f"{len(items)} {name}" for name, items in sections.items()) or "none"
        raise DataError(
            str(folder),
            f"it has no cases for '{section}' (found: {counts})",
            f"list them under '{section}' in {listing.name}, or give another dataset_dir",
        )
    return found


def training_cases(dataset_dir: str | Path) -> list[dict[str, Any]]:
    """The cases of the section ``training``, if there is something to learn from them.

    Labels are read until one is not empty, which as a rule is the first.

    Args:
        dataset_dir: folder of the data set, see :func:`cases`.

    Returns:
        dictionaries with ``image`` and ``label``.

    Raises:
        DataError: see :func:`cases`; also if a case has no label, or if all labels are empty.

    Example:
        ``training_cases("/data/hippocampus")[0]["label"]``
    """
    found = cases(dataset_dir)
    lonely = [case_name(ensure_tuple(item["image"])[0]) for item in found if "label" not in item]
    if lonely:
        raise DataError(
            str(dataset_dir),
            f"{len(lonely)} of its {len(found)} cases for training have no label: {', '.join(lonely[:5])}",
            "list their labels, or list them under 'test'",
        )
    load = LoadImage(image_only=True)
    if not any((load(item["label"], CheckingReader()) > 0).any() for item in found):
        raise DataError(
            str(dataset_dir),
            f"the labels of all its {len(found)} cases for training are empty",
            "give labels with structures to learn",
        )
    return found


def pair_by_name(images: Iterable[str | Path], labels: Iterable[str | Path]) -> list[dict[str, str]]:
    """Pair images and labels whose case names are equal.

    Args:
        images: paths of the images.
        labels: paths of the labels.

    Returns:
        one dictionary with ``image`` and ``label`` for each case, ordered by name.

    Raises:
        DataError: if a case has an image or a label only, or if two files have the same case name.

    Example:
        >>> pair_by_name(["i/b.nii.gz", "i/a.nii.gz"], ["l/a.nii", "l/b.nii"])
        [{'image': 'i/a.nii.gz', 'label': 'l/a.nii'}, {'image': 'i/b.nii.gz', 'label': 'l/b.nii'}]
    """
    by_name = {"image": _index(images), "label": _index(labels)}
    for kind, other in (("image", "label"), ("label", "image")):
        lonely = sorted(set(by_name[kind]) - set(by_name[other]))
        if lonely:
            path = by_name[kind][lonely[0]]
            more = f" (and {len(lonely) - 1} more: {', '.join(lonely[1:6])})" if len(lonely) > 1 else ""
            raise DataError(path, f"there is no {other} named '{lonely[0]}'{more}", f"add the {other} or move the file")
    return [{"image": by_name["image"][name], "label": by_name["label"][name]} for name in sorted(by_name["image"])]


def find_images(source: str | Path | Sequence[str | Path]) -> list[dict[str, Any]]:
    """The images to segment.

    Args:
        source: an image file, a DICOM series (a folder of .dcm files), a data set with a ``dataset.json`` (its test
            cases, else its validation cases), or any other folder, searched for images at any depth. A list of files
            is one image with a file for each channel, such as the modalities of MRI.

    Returns:
        one dictionary with ``image`` for each image, ordered by path.

    Raises:
        DataError: if there is nothing to segment, with what there is instead.

    Example:
        ``find_images("my_scans")``, ``find_images(["case_1_t1c.nii.gz", "case_1_flair.nii.gz"])``
    """
    if not isinstance(source, (str, Path)):
        return [{"image": [find_images(file)[0]["image"] for file in source]}]
    path = Path(source).absolute()
    if path.is_file():
        return [{"image": str(path)}]
    if not path.is_dir():
        raise DataError(str(path), "there is no such file or folder", "give an image, a DICOM folder or a data set")
    if (path / "dataset.json").is_file():
        sections = _read_listing(path / "dataset.json")
        chosen = sections.get("test") or cases(path, "validation")
        return [{"image": item["image"]} for item in chosen]
    if any(path.glob("*.dcm")):
        return [{"image": str(path)}]
    found = sorted(file for file in path.rglob("*") if _is_image(file))
    if not found:
        present = sorted(file.name for file in path.iterdir())[:5]
        raise DataError(
            str(path),
            f"it holds no image ({', '.join(IMAGE_SUFFIXES)}); it holds: {', '.join(present) or 'nothing'}",
            "give the folder of the images",
        )
    return [{"image": str(file)} for file in found]


def common_root(items: Sequence[Mapping[str, Any]]) -> str:
    """The deepest folder that holds all images of a data list.

    Results written relative to it keep the folders below it, so that files of one name in two folders stay apart.

    Example:
        >>> common_root([{"image": "/data/a/t1.nii.gz"}, {"image": "/data/b/t1.nii.gz"}])
        '/data'
    """
    folders = [str(Path(ensure_tuple(item["image"])[0]).absolute().parent) for item in items]
    return os.path.commonpath(folders) if folders else ""


def locate(*names: str) -> str:
    """The folder of a data set in ``$MONAI_DATA_DIRECTORY``, or in ``data`` where that is not set.

    Args:
        names: folder names to look for, the preferred one first.

    Returns:
        the first that exists, else where the last one is expected.

    Example:
        ``locate("hippocampus", "Task04_Hippocampus")``
    """
    root = Path(os.environ.get("MONAI_DATA_DIRECTORY", "data"))
    found = (root / name for name in names if (root / name).is_dir())
    return str(next(found, root / names[-1]))


def _is_image(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(IMAGE_SUFFIXES)


def _index(paths: Iterable[str | Path]) -> dict[str, str]:
    index: dict[str, str] = {}
    for path in map(str, paths):
        name = case_name(path)
        if name in index:
            raise DataError(path, f"case '{name}' is also in {index[name]}", "give every case a name of its own")
        index[name] = path
    return index


def _pair_folders(folder: Path) -> list[dict[str, str]]:
    for images, labels in _FOLDERS:
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return pair_by_name(*(filter(_is_image, (folder / name).iterdir()) for name in (images, labels)))
    present = sorted(path.name for path in folder.iterdir())[:5] if folder.is_dir() else []
    raise DataError(
        str(folder),
        f"it has neither a dataset.json nor folders images and labels; it holds: {', '.join(present) or 'nothing'}",
        "give the folder of the data set as dataset_dir",
    )


def _read_listing(listing: Path) -> dict[str, list[dict[str, Any]]]:
    fix = "correct or download the file again"
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(str(listing), f"it is not valid JSON: {error}", fix) from error
    if not isinstance(content, dict):
        raise DataError(str(listing), f"it holds a {type(content).__name__}, not the object of a data set", fix)
    sections = {}
    for name in ("training", "validation", "test"):
        if content.get(name):
            _check_paths(content[name], listing)
            sections[name] = load_decathlon_datalist(str(listing), data_list_key=name)
            _check_listing(sections[name], listing)
    return sections


def _check_paths(items: Iterable[Any], listing: Path) -> None:
    for item in items:
        for path in ensure_tuple(list(item.values()) if isinstance(item, dict) else item):
            for part in ensure_tuple(path):
                if isinstance(part, str) and os.path.normpath(part).split(os.sep)[0] == os.pardir:
                    raise DataError(
                        part, f"{listing} lists it, and it leads out of that folder", "give an absolute path instead"
                    )


def _check_listing(items: list[dict[str, Any]], listing: Path) -> None:
    owners = {}
    for item in items:
        if "image" not in item:
            raise DataError(str(listing), f"the case {item} has no 'image'", "give every case an image")
        for path in ensure_tuple(item["image"]) + ensure_tuple(item.get("label", ())):
            if not Path(path).exists():
                raise DataError(path, f"{listing} lists it, but it is not there", "restore it or correct the list")
        owners[case_name(ensure_tuple(item["image"])[0])] = item
    for item in items:
        owner = owners.get(case_name(item.get("label", "")), item)
        if owner is not item:
            raise DataError(
                item["label"],
                f"{listing} pairs it with {item['image']}, but it is named after another case",
                "correct the list",
            )
