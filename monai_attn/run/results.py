# SPDX-License-Identifier: Apache-2.0
"""Skip cases that already have an up-to-date result."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any
from zlib import crc32

import ignite.distributed as idist
from monai.transforms import Compose
from monai.utils import ensure_tuple
from torch.jit import ScriptModule

from monai_attn.data import common_root
from monai_attn.data.formats import PROVENANCE, is_result, provenance_of
from monai_attn.errors import ConfigError, DataError
from monai_attn.handlers.pictures import CasePictures
from monai_attn.handlers.settings import describe, digest
from monai_attn.run.manifest import file_hash, image_hash
from monai_attn.run.session import gather, share
from monai_attn.transforms import SafeSaveImage, SafeSaveImaged

__all__ = ["FinishedCases", "Provenance"]

_NAMES = {"weights": "another checkpoint", "config": "another configuration", "image": "another image of that name"}


class Provenance:
    """Return a line with hashes of weights, settings and image.

    It fits into the header of a result, to tell whether that is up to date. The ``parts`` are network, transforms,
    inferer and precision (``monai_attn.handlers.settings.describe``); :class:`FinishedCases` adds the post-processing.

    Example:
        ``Provenance("models/model.pt", [network, preprocessing])("scan.nii.gz")`` is
        ``"monai_attn weights=… config=… image=…"``.
    """

    def __init__(self, checkpoint: str, parts: Sequence[Any] = ()) -> None:
        self.checkpoint = checkpoint
        self.parts = list(parts)
        self.images: dict[str, tuple[str, ...]] = {}

    @cached_property
    def weights(self) -> str:
        """Hash of the weights: of their file, or of those in a network in TorchScript."""
        exported = [describe(dict(part.state_dict())) for part in self.parts if isinstance(part, ScriptModule)]
        return digest(exported[0]) if exported else file_hash(self.checkpoint)

    @cached_property
    def configuration(self) -> str:
        """Hash of the settings of all parts."""
        return digest(describe(self.parts))

    def __call__(self, image: str) -> str:
        """Return the line for an image file or DICOM folder."""
        scan = image_hash(self.images.get(image, (image,)))
        return f"{PROVENANCE}{self.weights[:12]} config={self.configuration[:12]} image={scan[:12]}"

    @staticmethod
    def difference(found: str, expected: str) -> str:
        """Return how two lines differ, as text."""
        if not found.startswith(PROVENANCE):
            return "nothing says what made it"
        parts = [dict(field.split("=") for field in line.split()[1:]) for line in (found, expected)]
        names = [words for name, words in _NAMES.items() if parts[0].get(name) != parts[1].get(name)]
        return f"it was made with {' and '.join(names)}"


class FinishedCases:
    """Skip the cases of an inference that are finished.

    A case is finished if all its files exist and come from the same weights, settings and image, and its pictures,
    which are drawn last, exist too. Thus an interrupted run continues, and only new images of a growing folder are
    segmented. ``finished`` is the number of skipped cases.

    Args:
        postprocessing: transforms, with :class:`monai_attn.transforms.SafeSaveImaged`.
        overwrite: whether to segment everything again.
        handlers: handlers of the evaluator, such as :class:`monai_attn.handlers.CasePictures`.
        shard: part of the cases, such as ``"3/16"``, by a hash of their names, for independent workers.

    Raises:
        ConfigError: if ``overwrite`` is not True or False.

    Example:
        ``CaseDataset(find_images("scans"), preprocessing, unfinished=FinishedCases(postprocessing))``
    """

    def __init__(
        self, postprocessing: Compose, overwrite: bool = False, handlers: Sequence[Any] = (), shard: str = ""
    ) -> None:
        if not isinstance(overwrite, bool):  # the string "false" would be true
            raise ConfigError("overwrite", f"{overwrite!r} is not a truth value", "give True or False")
        self.pictures = [handler for handler in handlers if isinstance(handler, CasePictures)]
        steps = postprocessing.flatten().transforms
        further = [step for picture in self.pictures for step in picture.write.flatten().transforms]
        self.savers = [step.saver for step in (*steps, *further) if isinstance(step, SafeSaveImaged)]
        self.provenances = [saver.provenance for saver in self.savers if isinstance(saver.provenance, Provenance)]
        for provenance in set(self.provenances):  # a saver holds its provenance, which so cannot be given the saver
            provenance.parts.extend(step for step in steps if not isinstance(step, SafeSaveImaged))
        self.overwrite = overwrite
        self.part, self.parts = map(int, (shard or "1/1").split("/"))
        self.finished = 0

    def __call__(self, cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return this process's share of the cases to segment.

        Raises:
            DataError: if two images would have one result, or an image is a result itself.
            ConfigError: if there are results of another provenance.
        """
        files = {str(paths[0]): paths for paths in (ensure_tuple(case["image"]) for case in cases)}
        images = [str(ensure_tuple(case["image"])[0]) for case in cases]
        for saver in self.savers:
            saver.data_root_dir = common_root(cases)
            self._check_images(images, saver)
        for provenance in self.provenances:
            provenance.images.update(files)  # a result knows its first file only
        # the folders and clashes of results are those of all cases, whatever part of them this worker has
        names = [os.path.relpath(image, common_root(cases)) for image in images]
        mine = [crc32(os.fsencode(name)) % self.parts == self.part - 1 for name in names]
        cases, images = list(compress(cases, mine)), list(compress(images, mine))
        unfinished = gather(self._unfinished(cases, images) if idist.get_rank() == 0 else [])
        self.finished = len(cases) - len(unfinished)
        return [unfinished[index] for index in share(unfinished)]

    def _unfinished(self, cases: Sequence[dict[str, Any]], images: list[str]) -> list[dict[str, Any]]:
        # a list first: every file there is looked at, also behind one that is missing
        saved = [all([self._is_there(image, saver) for saver in self.savers]) for image in images]  # noqa: C419
        present = [done and self._is_drawn(image) for done, image in zip(saved, images)]
        if number := sum(present):
            said = f"{number} of {len(cases)} cases are finished; --overwrite True segments them again"
            print(f"monai-attn: {said}", file=sys.stderr)
        return [case for case, done in zip(cases, present) if not done]

    def _check_images(self, images: list[str], saver: SafeSaveImage) -> None:
        owners: dict[Path, str] = {}
        for image in images:
            path = saver.path_of(image)
            if path in owners:
                raise DataError(image, f"its result would replace that of {owners[path]}", "rename one of them")
            owners[path] = image
            if is_result(image):
                raise DataError(image, "it is a result of an earlier run", "leave it out")

    def _is_there(self, image: str, saver: SafeSaveImage) -> bool:
        path = saver.path_of(image)
        if self.overwrite or not path.exists():
            return False
        expected = saver.provenance(image) if saver.provenance is not None else ""
        found = provenance_of(path)
        if found != expected or not found:
            problem = f"it is there already, and {Provenance.difference(found, expected)}"
            raise ConfigError(str(path), problem, "give another output_dir, or --overwrite True to replace it")
        return True

    def _is_drawn(self, image: str) -> bool:
        results = [saver.path_of(image) for saver in self.savers[:1]]
        return all(picture.path_beside(result, image).exists() for picture in self.pictures for result in results)
