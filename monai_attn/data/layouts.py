# SPDX-License-Identifier: Apache-2.0
"""Layouts of data sets: data lists, and folders of files.

Known are ``dataset.json`` of the Medical Segmentation Decathlon, of nnU-Net (version 2) and of Auto3DSeg,
``dataset.csv``, the folders ``images`` and ``labels``, and a folder for each case.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from textwrap import shorten
from typing import Any

from monai.utils import ensure_tuple

from monai_attn.errors import DataError
from monai_attn.files import content_of, say_left_out

__all__ = ["IMAGE_SUFFIXES", "LABEL", "LISTINGS", "PICTURE_SUFFIXES", "Sections", "case_folders", "case_name"]
__all__ += ["VOXEL_SUFFIXES", "is_image", "read_listing", "read_sections"]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp")
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".hdr", ".mgz", ".nrrd", ".nhdr", ".mha", ".mhd", *PICTURE_SUFFIXES)
_ENDINGS = (*IMAGE_SUFFIXES, ".dcm", ".ima", ".img", ".npy", ".npz", ".mat")
LISTINGS = ("dataset.json", "dataset.csv")
VOXEL_SUFFIXES = (".img", ".raw", ".zraw", ".raw.gz")  # of a header that is a file of its own
Sections = dict[str, list[dict[str, Any]]]

_FOLDERS = (("training", "images", "labels"), ("training", "imagesTr", "labelsTr"), ("test", "imagesTs", "labelsTs"))
_SECTIONS = {"training": "training", "validation": "validation", "test": "test", "testing": "test"}
LABEL = re.compile(r"(.*[^a-z])?(seg|segmentation|labels?|mask|gt)", re.IGNORECASE)
_MODALITIES = ("t1", "t1n", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "t2f")


def case_name(path: str | Path) -> str:
    """Return a case's name: its file name without extension.

    Example:
        >>> print(case_name("/data/scan.v2.nii.gz"), case_name("/data/1.2.840.113619.7"))
        scan.v2 1.2.840.113619.7
    """
    name = Path(path).name
    suffix = next((suffix for suffix in _ENDINGS if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def is_image(path: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> bool:
    """Return whether a path is an image file that is not hidden."""
    return path.name.lower().endswith(suffixes) and not path.name.startswith(".") and path.is_file()


def read_sections(folder: Path) -> Sections:
    """Read the cases of a data set by section, before holding any out."""
    if folder.name in LISTINGS:
        raise DataError(str(folder), "it is the list of a data set", f"give its folder, {folder.parent}")
    listing = next((folder / name for name in LISTINGS if (folder / name).is_file()), None)
    content = {} if listing is None else read_listing(listing)
    sections = {} if listing is None else _listed(content, listing)
    found = sections or _paired(folder, content) or case_folders(folder)
    if not found and listing is None:
        lacks = f"it has no {' or '.join(LISTINGS)}, and no folders images and labels or one for each case; it holds: "
        problem = lacks + content_of(folder) if folder.is_dir() else "there is no such folder"
        raise DataError(str(folder), problem, "give the folder of the data set as dataset_dir, or -d")
    for item in chain(*found.values()):
        if isinstance(item["image"], list) and len(item["image"]) == 1:
            item["image"] = item["image"][0]
    return found


def read_listing(listing: Path) -> dict[str, Any]:
    """Read a data list."""
    kind, fix = listing.suffix[1:].upper(), "correct or download the file again"
    try:
        text = listing.read_text(encoding="utf-8-sig")
        content = json.loads(text) if kind == "JSON" else _read_table(text)
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error, RecursionError) as error:
        raise DataError(str(listing), f"it is not valid {kind}: {error}", fix) from error
    if not isinstance(content, dict):
        raise DataError(str(listing), f"it holds a {type(content).__name__}, not the object of a data set", fix)
    return content


def _read_table(text: str) -> dict[str, Any]:
    """Return the rows of a CSV file like a ``dataset.json``; channels are separated by semicolons."""
    content: dict[str, Any] = {}
    for row in csv.DictReader(text.splitlines()):
        filled = {key: value.strip() for key, value in row.items() if isinstance(value, str) and value.strip()}
        words = {key.strip().lower(): value for key, value in filled.items()}
        item: dict[str, Any] = {"image": [name.strip() for name in words.get("image", "").split(";")]}
        item |= {key: words[key] for key in ("label", "group") if key in words}
        content.setdefault(words.get("section", "training"), []).append(item)
    return content


def _listed(content: Mapping[str, Any], listing: Path) -> Sections:
    """Return the sections of a data list with absolute paths, after checking it."""
    sections: Sections = {}
    for key, name in _SECTIONS.items():
        entries = content.get(key) or []
        if not isinstance(entries, list):
            raise _odd(listing, key, entries, "it is no list of cases")
        for entry in entries:
            item = _checked(entry, key, listing)
            parts = {part: _absolute(item[part], listing.parent, part in ("image", "label")) for part in item}
            sections.setdefault(name, []).append(parts)
    _check_names(content, listing, sections)
    training = sections.get("training", [])
    folds = sorted({item["fold"] for item in training if "fold" in item}, key=str)
    if len(folds) > 1 and "validation" not in sections:
        sections["validation"] = [item for item in training if item.get("fold") == folds[0]]
        sections["training"] = [item for item in training if item.get("fold") != folds[0]]
    _check_files(sections, listing)
    return sections


def _odd(listing: Path, key: str, entry: Any, problem: str) -> DataError:
    """Return the error for an entry of a data list."""
    problem += f", under '{key}': {shorten(json.dumps(entry, default=str), 100)}"
    fix = 'write {"image": "images/1.nii.gz", "label": "labels/1.nii.gz"}; several channels are a list of images'
    return DataError(str(listing), problem, fix)


def _checked(entry: Any, key: str, listing: Path) -> dict[str, Any]:
    """Return the case of an entry, with the separators of this system, or raise."""
    given = entry if isinstance(entry, dict) else {"image": entry}
    item = {part: value for part, value in given.items() if (part, value) != ("label", None)}
    if not _first(item.get("image")):
        raise _odd(listing, key, entry, "a case has no 'image'")
    for part in ("image", "label")[: 1 + ("label" in item)]:
        texts = [item[part]] if isinstance(item[part], str) else item[part]
        are_texts = isinstance(texts, list) and texts and all(isinstance(text, str) and text for text in texts)
        if not are_texts or not isinstance(entry, (str, dict)) or (part == "label" and len(texts) > 1):
            raise _odd(listing, key, entry, f"a case has no path as its {part}")
        texts = [text if os.path.exists(listing.parent / text) else text.replace("\\", "/") for text in texts]
        item[part] = texts if part == "image" and isinstance(item[part], list) else texts[0]
    if not isinstance(item.get("fold", 0), (str, int)):
        raise _odd(listing, key, entry, "a case has no number as its fold")
    for path in _strings(item):
        if os.path.normpath(path).split(os.sep)[0] == os.pardir:
            problem = f"{listing} lists it, and it leads out of that folder"
            raise DataError(path, problem, "give an absolute path instead")
    return item


def _strings(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, (dict, list)):
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from _strings(part)


def _first(entry: Any) -> str:
    return next(_strings(entry), "")


def _absolute(value: Any, folder: Path, is_file: bool) -> Any:
    """Return an entry with absolute paths; what may be no file is a path if it exists."""
    if isinstance(value, list):
        return [_absolute(part, folder, is_file) for part in value]
    path = os.path.normpath(folder / value) if isinstance(value, str) else value
    return path if is_file or (isinstance(value, str) and os.path.exists(path)) else value


def _check_names(content: Mapping[str, Any], listing: Path, sections: Sections) -> None:
    """Raise if cases are listed under another name, and not as a selection of the training cases."""
    training = sections.get("training", []) if "validation" in sections else []
    known = {*_strings(training)}
    unknown = []
    for key, entries in content.items():
        if key not in _SECTIONS and isinstance(entries, (list, dict)) and not key.startswith("label"):
            images = [_first(entry.get("image")) for entry in entries if isinstance(entry, dict)]
            images += [text for text in _strings(entries) if text.lower().endswith(IMAGE_SUFFIXES)]
            paths = [os.path.normpath(listing.parent / image) for image in images if image]
            unknown += [] if known.issuperset(paths) else [repr(key)]
    if unknown:
        problem = f"it lists cases under {', '.join(unknown)}; known are {', '.join(_SECTIONS)}"
        raise DataError(str(listing), problem, "rename the section, or take it out")


def _check_files(sections: Sections, listing: Path) -> None:
    """Raise unless all listed files exist, and no label is named after another case."""
    for items in sections.values():
        for path in (path for item in items for path in _strings([item["image"], item.get("label")])):
            if not os.path.exists(path):
                raise DataError(path, f"{listing} lists it, but it is not there", "restore it or correct the list")
        owners: dict[str, list[Any]] = {}
        for item in items:
            owners.setdefault(case_name(_first(item["image"])), []).append(item)
        for item in items:
            if not any(item is owner for owner in owners.get(case_name(item.get("label", "")), [item])):
                problem = f"{listing} pairs it with {item['image']}, but it is named after another case"
                raise DataError(item["label"], problem, "correct the list")
    listed = {path for items in sections.values() for item in items for path in _strings([*item.values()])}
    folders = {Path(_first(item["image"])).parent for items in sections.values() for item in items}
    beside = [file for folder in sorted(folders) for file in sorted(folder.iterdir()) if is_image(file)]
    say_left_out(listing.parent, [file for file in beside if str(file) not in listed], f"not listed in {listing.name}")


def _paired(folder: Path, content: Mapping[str, Any]) -> Sections:
    """Pair images and labels by name; ``content`` may be nnU-Net's ``dataset.json``."""
    sections: Sections = {}
    suffixes = tuple(map(str, ensure_tuple(content.get("file_ending", IMAGE_SUFFIXES))))
    for section, images, labels in _FOLDERS:
        labeled = (folder / labels).is_dir()
        if section in sections or not (folder / images).is_dir() or (section == "training" and not labeled):
            continue
        scans: dict[str, Any] = _index(folder / images, suffixes)
        if isinstance(content.get("channel_names"), (dict, list)):
            scans = _join_channels(scans, len(content["channel_names"]))
        truth = _index(folder / labels, suffixes) if labeled else {}
        sections[section] = _pair(scans, truth) if labeled else [{"image": scan} for scan in scans.values()]
    return sections


def _index(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
    index: dict[str, str] = {}
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    say_left_out(folder, [path for path in files if not is_image(path, suffixes)], "no images")
    for path in (str(path) for path in files if is_image(path, suffixes)):
        name = case_name(path)
        if name in index:
            raise DataError(path, f"case '{name}' is also in {index[name]}", "give every case a name of its own")
        index[name] = path
    return index


def _join_channels(scans: Mapping[str, str], number: int) -> dict[str, list[str]]:
    """Join nnU-Net's files ``case_0000``, ``case_0001``, … of a case."""
    channels: dict[str, list[str]] = {}
    for name, path in scans.items():
        channels.setdefault(name.rpartition("_")[0], []).append(path)
    for case, files in channels.items():
        if len(files) != number:
            problem = f"its case '{case}' has {len(files)} channels, and dataset.json names {number}"
            raise DataError(files[0], problem, "add what is missing, or correct dataset.json")
    return channels


def _pair(images: Mapping[str, Any], labels: Mapping[str, Any]) -> list[dict[str, Any]]:
    for paths, others, other in ((images, labels, "label"), (labels, images, "image")):
        lonely = sorted(set(paths) - set(others))
        if lonely:
            more = f" (and {len(lonely) - 1} more: {', '.join(lonely[1:6])})" if len(lonely) > 1 else ""
            problem = f"there is no {other} named '{lonely[0]}'{more}"
            raise DataError(_first(paths[lonely[0]]), problem, f"add the {other} or move the file")
    return [{"image": images[name], "label": labels[name]} for name in sorted(images)]


def case_folders(folder: Path, images: Sequence[Path] | None = None) -> Sections:
    """Read a folder of one folder per case, or these images of it.

    Each has images of the same kinds and a label; those without a label are for the test.

    Raises:
        DataError: if a case has other images than most, or several labels.
    """
    cases: dict[Path, dict[str, str]] = {}
    for path in sorted(filter(is_image, folder.rglob("*") if images is None else images)):
        own = rf"(?<![^\W_]){re.escape(path.parent.name)}(?![^\W_])"  # as a word: case 2 has a t2
        kind = re.sub(own, "", case_name(path)).strip(" -_.")
        if kind in cases.setdefault(path.parent, {}):
            raise DataError(str(path), f"{cases[path.parent][kind]} is of the same kind", "leave one of them out")
        cases[path.parent][kind] = str(path)
    labels = {case: [kind for kind in files if LABEL.fullmatch(kind)] for case, files in cases.items()}
    kinds = {case: sorted({*files} - {*labels[case]}, key=_rank) for case, files in cases.items()}
    usual = Counter(map(tuple, kinds.values())).most_common(1)[0][0] if any(labels.values()) else ()
    if folder in cases or not usual:
        return {}
    sections: Sections = {}
    for case, files in cases.items():
        if len(labels[case]) > 1 or kinds[case] != [*usual]:
            problem = f"it has {', '.join(files)}; other cases have {', '.join(usual)} and a label"
            raise DataError(str(case), problem, "complete or rename its files, or move what does not belong there")
        item: dict[str, Any] = {"image": [files[kind] for kind in usual]}
        item |= {"label": files[labels[case][0]]} if labels[case] else {}
        sections.setdefault("training" if labels[case] else "test", []).append(item)
    return sections


def _rank(kind: str) -> tuple[int, str]:
    """Return the order of a channel: that of BraTS, then of the alphabet."""
    return [*_MODALITIES, kind.lower()].index(kind.lower()), kind
