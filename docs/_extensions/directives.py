# SPDX-License-Identifier: Apache-2.0
"""Directives for what is made when the site is built: ``bundle-keys`` and ``command-help``."""

from __future__ import annotations

from typing import Any

from bundle_keys import BUNDLES, CONFIGURATIONS, tables
from command_help import help_texts
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class BundleKeys(SphinxDirective):
    """A section for every bundle, with its tables."""

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        found: list[nodes.Node] = []
        for bundle in sorted(path.parent for path in BUNDLES.glob("*/configs")):
            for source in ("docs/README.md", *(f"configs/{name}.json" for name in CONFIGURATIONS)):
                self.env.note_dependency(str(bundle / source))
            heading = f"## {bundle.name}\n\n[Its card](/cards/{bundle.name}.md)\n\n"
            found += self.parse_text_to_nodes(heading + tables(bundle), allow_section_headings=True)
        return found


class CommandHelp(SphinxDirective):
    """A section for every command."""

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        text = "\n\n".join(f"## {command}\n\n```text\n{text}```" for command, text in help_texts().items())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives."""
    app.add_directive("bundle-keys", BundleKeys)
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
