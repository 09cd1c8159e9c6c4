# SPDX-License-Identifier: Apache-2.0
"""Links that are right in the repository, made right on the site, where a bundle's README is a page in ``cards``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

__all__ = ["relink"]

_REPLACEMENTS = (
    (re.compile(r"\]\((?:\.\./)+bundles/(\w+)/docs/README\.md"), r"](/cards/\1.md"),  # in a page
    (re.compile(r"\]\((?:\.\./)+docs/"), r"](/"),  # in a README
)


def relink(text: str) -> str:
    """A text with its links as the site has them.

    Example:
        >>> relink("[card](../bundles/a_b/docs/README.md#data), [page](../../../docs/export.md)")
        '[card](/cards/a_b.md#data), [page](/export.md)'
    """
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text


def _relink_source(_app: Sphinx, _name: str, content: list[str]) -> None:
    content[0] = relink(content[0])


def _relink_included(_app: Sphinx, _path: object, _name: str, content: list[str]) -> None:
    content[0] = relink(content[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Look at every page, and at what pages include."""
    app.connect("source-read", _relink_source)
    app.connect("include-read", _relink_included)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
