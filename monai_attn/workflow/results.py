# SPDX-License-Identifier: Apache-2.0
"""What is segmented already, and by what."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from monai.transforms import Compose
from monai.utils import ensure_tuple

from monai_attn.data.datalist import find_images
from monai_attn.errors import ConfigError, DataError
from monai_attn.handlers.pictures import CasePictures
from monai_attn.transforms import SafeSaveImage, SafeSaveImaged, origin_of
from monai_attn.workflow.call import bundle_call
from monai_attn.workflow.manifest import file_hash, image_hash
from monai_attn.workflow.processes import gather, share

__all__ = ["FinishedCases", "Provenance"]

_NAMES = {"weights": "another checkpoint", "config": "another configuration", "image": "another image of that name"}


class Provenance:
    """What makes the result of an image, in a line that fits into the result itself.

    It holds hashes of the weights, of the configuration with its overrides, and of the image, so that a result tells
    whether it is the one that would be made again.

    Args:
        checkpoint: file of the weights.

    Example:
        ``Provenance("models/model.pt")("scan.nii.gz")`` is ``"monai_attn weights=… config=… image=…"``.
    """

    start = "monai_attn weights="

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint
        self.configuration = bundle_call().configuration_hash()

    @cached_property
    def weights(self) -> str:
        """Hash of the weights, which must be there by now."""
        return file_hash(self.checkpoint) or "none"

    def __call__(self, image: str) -> str:
        """The line for an image file, or for a folder with a DICOM series."""
        weights, config, scan = (digest[:12] for digest in (self.weights, self.configuration, image_hash(image)))
        return f"{self.start}{weights} config={config} image={scan}"

    @classmethod
    def difference(cls, found: str, expected: str) -> str:
        """In what the line of a result differs from the expected one, in words."""
        if not found.startswith(cls.start):
            return "nothing says what made it"
        parts = [dict(field.split("=") for field in line.split()[1:]) for line in (found, expected)]
        names = [words for name, words in _NAMES.items() if parts[0].get(name) != parts[1].get(name)]
        return f"it was made with {' and '.join(names)}"


class FinishedCases:
    """The results of an inference: which of them are there, and whether they may stay.

    A case is finished if all files that the post-processing writes for it are there and come from the same weights,
    configuration and image, and its pictures are there if it is to have some: they are drawn last, so a run may have
    been killed before. So a run that was interrupted goes on where it was, and a folder that has grown has only
    its new images segmented. A file of another origin is not touched without being told so.

    Args:
        source: what to segment, see :func:`monai_attn.data.find_images`.
        postprocessing: transforms, with the :class:`monai_attn.transforms.SafeSaveImaged` that write.
        overwrite: whether to segment everything, whatever is there.
        handlers: handlers of the evaluator, with the :class:`monai_attn.handlers.CasePictures` that draw, if any.

    Raises:
        ConfigError: if ``overwrite`` is not True or False.

    Example:
        ``FinishedCases("scans", postprocessing).unfinished()``
    """

    def __init__(
        self,
        source: str | Sequence[str],
        postprocessing: Compose,
        overwrite: bool = False,
        handlers: Sequence[Any] = (),
    ) -> None:
        if not isinstance(overwrite, bool):  # the string "false" would be true
            raise ConfigError("overwrite", f"{overwrite!r} is not a truth value", "give True or False")
        self.source = source
        self.savers = [step.saver for step in postprocessing.flatten().transforms if isinstance(step, SafeSaveImaged)]
        self.pictures = [handler for handler in handlers if isinstance(handler, CasePictures)]
        self.overwrite = overwrite
        self.finished = 0

    def unfinished(self) -> list[dict[str, Any]]:
        """The cases to segment, as dictionaries with ``image``; the others are counted in ``finished``.

        Of several processes each gets its share, see :func:`monai_attn.workflow.share`. The first one looks at what is
        there, before any of them writes, so that all share the same cases.

        Raises:
            DataError: if two images would have one result, or an image is a result itself.
            ConfigError: if there are results of another origin.
        """
        cases = find_images(self.source)
        images = [str(ensure_tuple(case["image"])[0]) for case in cases]
        for saver in self.savers:
            self._check_images(images, saver)
        unfinished = gather(self._look(cases, images) if idist.get_rank() == 0 else [])
        self.finished = len(cases) - len(unfinished)
        return [unfinished[index] for index in share(unfinished)]

    def _look(self, cases: list[dict[str, Any]], images: list[str]) -> list[dict[str, Any]]:
        # a list first: every file there is looked at, also behind one that is missing
        saved = [all([self._is_there(image, saver) for saver in self.savers]) for image in images]  # noqa: C419
        present = [done and self._is_drawn(number, image) for number, (done, image) in enumerate(zip(saved, images))]
        if any(present):
            print(
                f"monai_attn: {sum(present)} of {len(cases)} cases are finished; --overwrite True segments them again",
                file=sys.stderr,
            )
        return [case for case, done in zip(cases, present) if not done]

    def _check_images(self, images: list[str], saver: SafeSaveImage) -> None:
        owners: dict[Path, str] = {}
        for image in images:
            path = saver.path_of(image)
            if path in owners:
                raise DataError(image, f"its result would replace that of {owners[path]}", "rename one of them")
            owners[path] = image
            inside = Path(image).is_relative_to(Path(saver.output_dir).absolute())
            if inside and origin_of(image).startswith(Provenance.start):
                raise DataError(image, "it is a result of an earlier run", "give an output_dir outside of the input")

    def _is_there(self, image: str, saver: SafeSaveImage) -> bool:
        path = saver.path_of(image)
        if self.overwrite or not path.exists():
            return False
        expected = saver.origin(image) if saver.origin is not None else ""
        found = origin_of(path)
        if found != expected or not found:
            raise ConfigError(
                str(path),
                f"it is there already, and {Provenance.difference(found, expected)}",
                "give another output_dir, or --overwrite True to replace it",
            )
        return True

    def _is_drawn(self, number: int, image: str) -> bool:
        """Whether a case has its pictures, which lie beside its results; ``number`` is its place among all cases."""
        wanted = [picture for picture in self.pictures if number < picture.max_cases]
        results = [saver.path_of(image) for saver in self.savers[:1]]
        return all(picture.path_beside(result, image).exists() for picture in wanted for result in results)
