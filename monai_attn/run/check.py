# SPDX-License-Identifier: Apache-2.0
"""Check the cases that a bundle is to be run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monai_attn.data.datalist import cases, find_images
from monai_attn.data.inspection import check_cases
from monai_attn.workflow.bundle import components, find_bundle, parse_override, read_bundle

__all__ = ["check_bundle"]

_CHECKS = [
    f"monai_attn.transforms.{name}" for name in ("SafeLoadImaged", "SafeChannelFirstd", "CheckImaged", "CheckLabeld")
]


def check_bundle(
    bundle: str,
    *,
    dataset_dir: str | None = None,
    images: Sequence[str] = (),
    sections: Sequence[str] = ("training", "validation"),
    configs: Sequence[str] = (),
    overrides: Sequence[str] = (),
) -> Iterator[str]:
    """Load every case as a bundle does, and tell what is found.

    Args:
        bundle: folder of the bundle, or the name of one in ``./bundles``.
        dataset_dir: the data set; by default that of the bundle.
        images: look at these instead, as for inference: an image, a folder or a data set, or the files of one image.
        sections: sections of the data set.
        configs: configurations to take; by default ``train``, or ``inference`` for ``images``.
        overrides: overrides of entries, ``KEY=VALUE``.

    Yields:
        the lines of a table and of a summary.

    Raises:
        ConfigError: if the bundle or an override cannot be used.
        DataError: at once, if there are no cases; at the end, if some cannot be used.

    Example:
        ``for line in check_bundle("hippocampus_mri_scse_segmentation", dataset_dir="my_data"): print(line)``
    """
    entries = dict(map(parse_override, overrides)) | ({"dataset_dir": dataset_dir} if dataset_dir else {})
    parser = read_bundle(find_bundle(bundle), configs or ["inference" if images else "train"], entries)
    if images:
        source, parts = ", ".join(images), {"input": find_images(images[0] if len(images) == 1 else images)}
    else:
        source = str(parser.get_parsed_content("dataset_dir"))
        parts = {section: cases(source, section) for section in sections}
    yield from check_cases(components(parser, _CHECKS), parts, source)
