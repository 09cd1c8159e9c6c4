# SPDX-License-Identifier: Apache-2.0
"""Prepare downloaded data sets for the bundles.

``sources.json`` is the table of the data sets as they are distributed. Images are listed where they lie; labels are
written only where their values change.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from monai.transforms import LoadImage
from monai.utils import optional_import
from tqdm import tqdm

from monai_attn.data.checking import format_ranges, label_values
from monai_attn.data.datalist import case_name
from monai_attn.data.reader import CheckingReader
from monai_attn.errors import ConfigError, DataError
from monai_attn.files import atomic_write

__all__ = ["prepare"]

_FIX = "complete or repeat the download, or move the case out of it"
_IGNORED = 255  # label of what nobody has drawn


class _Source(NamedTuple):
    """An entry of ``sources.json``."""

    name: str
    image: str  # regular expression of the end of a path; its group `part` is a modality
    label: str  # the same; `part` is a kind, of which the first one counts, or an organ
    known: Sequence[Any] = ()  # values that stay or, if there are `classes`, become background
    classes: Sequence[Sequence[Any]] = ()  # values of each class from 1
    modalities: Sequence[str] = ("",)  # parts of an image, in the order of its channels
    reader: str = "values"
    sections: Mapping[str, str] = {}  # by regular expressions of paths; other cases are for training
    windowed: bool = False
    folder: str = ""
    notes: Sequence[str] = ()

    @property
    def values(self) -> dict[int, int]:
        known = {value: 0 if self.classes else value for value in _numbers(self.known)}
        return known | {value: number for number, group in enumerate(self.classes, 1) for value in _numbers(group)}


class _Case(NamedTuple):
    name: str
    section: str
    images: list[Path]
    labels: list[Path]  # several if each organ has a file


class _Scan(NamedTuple):
    """An image of a case: its new files by key, with their encoders, and counts for the report."""

    files: Mapping[str, tuple[str, Callable[[], bytes]]] = {}
    notes: Mapping[str, int] = {}


def prepare(bundle: str, downloaded: Path, folder: Path, sections: Mapping[str, str]) -> Iterator[str]:
    """Prepare a downloaded data set for training.

    All labels are read before anything is written; files that are up to date are kept.

    Args:
        bundle: name of the bundle.
        downloaded: folder of the unpacked download.
        folder: folder to make, with a ``dataset.json``.
        sections: section by the name of a case: ``training``, ``validation``, ``test``, or another one to leave it out.

    Yields:
        the lines of a report.

    Raises:
        ConfigError: if the bundle has no public data set.
        DataError: if files are missing, have no partner or unknown values, or the folder holds another data set.

    Example:
        ``for line in prepare("kits_ct_egcnn_segmentation", Path("kits19"), Path("data/kits19"), {}): print(line)``
    """
    sources = _sources(bundle)
    root, out = Path(os.path.abspath(downloaded)), Path(os.path.abspath(folder))
    own = out if root in out.parents else None  # no part of the download
    paths = (path for path in sorted(root.rglob("[!.]*")) if path.is_file() and own not in path.parents)
    files = {path.relative_to(root).as_posix(): path for path in paths}
    work: dict[Path, tuple[_Source, list[_Case]]] = {}
    for source in sources:
        cases = _find(source, files, sections)
        work |= {out / source.folder: (source, cases)} if cases and out / source.folder not in work else {}
    if not work or root == out:
        problem = f"it holds {', '.join([*files][:3]) or 'nothing'}, expected {' or '.join(s.name for s in sources)}"
        raise DataError(str(root), problem, "give the folder of the unpacked download, and another one to write to")
    for name in sorted({*sections} - {case.name for _, cases in work.values() for case in cases}):
        raise DataError(str(root), f"it has no case named {name}", "correct the names in --split")
    listings = {}
    for target, (source, cases) in work.items():
        listings[target], report = _list(source, cases, target, bundle)
        yield from report
    used = {path for _, cases in work.values() for case in cases for path in [*case.images, *case.labels]}
    others = [name for name, path in files.items() if path not in used]
    yield f"left out: {len(others)} other files {', '.join(others[:3])}".rstrip()
    written = 0
    for target, (source, cases) in work.items():
        for case in tqdm(cases, "write", leave=False, unit="case", disable=None):
            for scan in _READERS[source.reader](case, source.values):
                written += sum(_save(target / path, encode()) for path, encode in scan.files.values())
        written += _save(target / "dataset.json", listings[target])
    yield f"written: {written} files; next: monai-attn check {bundle} --dataset_dir {out}"


def _numbers(entries: Sequence[Any]) -> list[int]:
    """Expand [1, [4, 7]] to 1, 4, 5, 6."""
    return [number for entry in entries for number in (range(*entry) if isinstance(entry, list) else [entry])]


def _sources(bundle: str) -> list[_Source]:
    """Return the sources of a bundle's data."""
    table = json.loads(Path(__file__).with_name("sources.json").read_text(encoding="utf-8"))
    entries = table.get(bundle, "no data set is known for it")
    if isinstance(entries, str):
        raise ConfigError(bundle, entries, "see its card, or docs/own_data.md")
    return [_Source(**entry) for entry in entries]


def _find(source: _Source, files: Mapping[str, Path], sections: Mapping[str, str]) -> list[_Case]:
    """Return the cases of a source; raise if a file has no partner."""
    found: dict[str, tuple[dict[str, str], dict[str, str]]] = {}
    for name in files:
        for kind, pattern in enumerate((source.image, source.label)):
            match = re.fullmatch(f"(?:.*/)?{pattern}", name, re.IGNORECASE)
            if match:
                parts = found.setdefault(match["case"], ({}, {}))[kind]
                first = parts.setdefault(match.groupdict().get("part", "").lower(), name)
                if first != name:
                    raise DataError(str(files[name]), f"its case is in {files[first]} too", _FIX)
    cases, problems = [], []
    for case, (images, labels) in sorted(found.items()):
        names = [*images.values(), *(name for _, name in sorted(labels.items()))]
        missing = [f"{part} image".strip() for part in source.modalities if part not in images]
        missing += [] if labels else ["label"]
        if missing:
            problems.append((str(files[names[0]]), f"its case {case} has no {', no '.join(missing)}"))
            continue
        told = (section for word, section in source.sections.items() if re.search(word, " ".join(names), re.IGNORECASE))
        section = sections.get(case) or next(told, "training")
        paths = [files[images[part]] for part in source.modalities]
        cases.append(_Case(case, section, paths, [files[name] for name in names[len(images) :]]))
    if problems:
        more = f" (and {len(problems) - 1} more cases)" if len(problems) > 1 else ""
        raise DataError(problems[0][0], problems[0][1] + more, _FIX)
    return cases


def _list(source: _Source, cases: list[_Case], target: Path, bundle: str) -> tuple[bytes, list[str]]:
    """Read all labels; return the content of ``dataset.json``, and a report."""
    content: dict[str, Any] = {"name": source.name, "description": f"made for {bundle} by monai-attn prepare"}
    listing = target / "dataset.json"
    if listing.exists() and content["description"] not in listing.read_text(encoding="utf-8"):
        raise DataError(str(listing), "it lists another data set", "give another folder to write to")
    if source.windowed:
        content["options"] = _window([case.images[0] for case in cases])
    items: dict[str, list[Any]] = {"training": [], "validation": [], "test": []}
    counts = Counter[str]()
    for case in tqdm(cases, "read", leave=False, unit="case", disable=None):
        item = {"image": case.images if len(case.images) > 1 else case.images[0], "label": case.labels[0]}
        for scan in _READERS[source.reader](case, source.values):
            counts.update(scan.notes)
            items.get(case.section, []).append(item | {key: path for key, (path, _) in scan.files.items()})
    content |= {section: found for section, found in items.items() if found}
    report = [f"{source.name}: {', '.join(f'{len(found)} {section}' for section, found in items.items() if found)}"]
    report += [f"  {note}" for note in source.notes]
    report += [f"  {count:,} {note}" for note, count in sorted(counts.items()) if count]
    report += ["  a fifth of the training cases validates"] * bool(items["training"] and not items["validation"])
    options = [f"{key}={json.dumps(value, separators=(',', ':'))}" for key, value in content.get("options", {}).items()]
    if options:
        report.append(f"  add --{' --'.join(options)}")

    def name(path: Path) -> str:
        return path.relative_to(target).as_posix() if target in path.parents else str(path)

    return json.dumps(content, indent=1, default=name).encode() + b"\n", report


def _load(path: Path) -> Any:
    return LoadImage(image_only=True, ensure_channel_first=True)(path, CheckingReader())[0]


def _encode(array: np.ndarray, like: Any = None) -> bytes:
    """Encode an 8-bit image as NIfTI on the grid of another, or as PNG."""
    if like is None:
        optional_import("PIL.Image")[0].fromarray(array.T.astype(np.uint8)).save(stream := io.BytesIO(), "PNG")
        return stream.getvalue()
    image = nibabel.Nifti1Image(array.astype(np.uint8), like.affine.numpy())
    image.set_sform(like.affine.numpy(), int(like.meta.get("sform_code", 1)))
    image.set_qform(like.affine.numpy(), int(like.meta.get("qform_code", 1)))
    return gzip.compress(image.to_bytes(), 6, mtime=0)


def _save(path: Path, content: bytes) -> bool:
    """Write a file unless it holds that already."""
    fix = "make room, or give another folder to write to"
    if path.is_file() and path.read_bytes() == content:
        return False
    with atomic_write(path, fix) as draft:
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(content)
    return True


def _map_values(case: _Case, values: Mapping[int, int]) -> Iterator[_Scan]:
    """Map the values of a label, unless all stay as they are."""
    label = _load(case.labels[0])
    unknown = sorted({*label_values(label)} - {*values})
    if unknown:
        problem = f"it has the values {format_ranges(unknown)}, known are {format_ranges(sorted(values))}"
        raise DataError(str(case.labels[0]), problem, _FIX)
    if all(value == number for value, number in values.items()):
        yield _Scan()
    else:
        table = np.zeros(max(values) + 1, np.uint8)
        table[[*values]] = [*values.values()]
        yield _Scan({"label": (f"labels/{case.name}.nii.gz", partial(_encode, table[label.int().numpy()], label))})


def _merge_organs(case: _Case, organs: Mapping[int, int]) -> Iterator[_Scan]:
    """Merge masks named after organs; where two overlap, the later class wins."""
    masks = {int(case_name(path).split("_")[-2]): path for path in case.labels}
    for organ in sorted({*masks} - {*organs}):
        raise DataError(str(masks[organ]), f"its organ {organ} is none of {', '.join(map(str, sorted(organs)))}", _FIX)
    like = _load(case.images[0])
    merged, notes = np.zeros(like.shape, np.uint8), Counter[str]()
    for organ, number in sorted(organs.items(), key=lambda pair: pair[1]):
        if number and organ not in masks:
            notes[f"scans without a mask of organ {organ}"] += 1
        elif number:
            inside = _load(masks[organ]).numpy() > 0
            if inside.shape != merged.shape:
                raise DataError(str(masks[organ]), f"its shape {inside.shape} is not that of {case.images[0]}", _FIX)
            notes["voxels of two organs, given to the later one"] += np.count_nonzero(merged[inside])
            merged[inside] = number
    yield _Scan({"label": (f"labels/{case.name}.nii.gz", partial(_encode, merged, like))}, notes)


def _draw_layers(case: _Case, _: Mapping[int, int]) -> Iterator[_Scan]:
    """Draw the classes between the boundaries of retinal layers, and fluid, in the B-scans that have them."""
    from scipy.io import loadmat

    names = ("images", "manualLayers1", "manualFluid1")
    try:
        content = loadmat(case.images[0], variable_names=names)
        images, boundaries, fluid = (np.asarray(content[name], float).transpose(2, 1, 0) for name in names)
        # all are (B-scans, width, height), as MONAI reads pictures; MATLAB counts rows from 1
        layers = (boundaries[..., None] <= np.arange(1, images.shape[2] + 1)).sum(2)
        labels = np.where(fluid > 0, 9, layers)
        drawn = np.isfinite(boundaries).all(2)
        labels[~drawn] = _IGNORED
    except Exception as error:  # scipy's and numpy's are of many kinds
        raise DataError(str(case.images[0]), f"it has no {', '.join(names)} of one size: {error}", _FIX) from error
    for index in np.flatnonzero(drawn.any(1)).tolist():
        name = f"S{case.name}_b{index:02d}.png"
        arrays = {"image": images[index].clip(0, 255), "label": labels[index]}
        files = {key: (f"{key}s/{name}", partial(_encode, array)) for key, array in arrays.items()}
        yield _Scan(files, {f"columns without boundaries, to be ignored ({_IGNORED})": int((~drawn[index]).sum())})


def _window(images: Sequence[Path]) -> dict[str, Any]:
    """Return window, mean and standard deviation of CT pictures; negative values mean Hounsfield units."""
    low, high = (-1000, 400) if min(float(_load(path).min()) for path in images) < 0 else (0, 255)
    sums = np.zeros(3)
    for path in images:
        pixels = ((_load(path).numpy().astype(float) - low) / (high - low)).clip(0, 1)
        sums += [pixels.size, pixels.sum(), np.square(pixels).sum()]
    mean, square = sums[1:] / sums[0]
    std = float(square - mean**2) ** 0.5
    return {"window": [low, high], "intensity_mean": round(float(mean), 4), "intensity_std": round(std, 4)}


_READERS = {"values": _map_values, "organs": _merge_organs, "layers": _draw_layers}
