# SPDX-License-Identifier: Apache-2.0
"""The help of ``monai-attn`` and of its subcommands, as they print it."""

from __future__ import annotations

import argparse
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from monai_attn import cli

__all__ = ["help_texts"]

_WIDTH = 100


def help_texts() -> dict[str, str]:
    """The help of every command, under the words that call it."""

    class Wide(argparse.RawDescriptionHelpFormatter):
        def __init__(self, prog: str) -> None:
            super().__init__(prog, width=_WIDTH)

    parser = cli._parser()
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    found = {}
    for command in (parser, *subparsers.choices.values()):
        command.formatter_class = Wide
        found[command.prog] = command.format_help()
    return found


class CommandHelp(SphinxDirective):
    """A section for every command."""

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        text = "\n\n".join(f"## {command}\n\n```text\n{text}```" for command, text in help_texts().items())
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive ``command-help``."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
