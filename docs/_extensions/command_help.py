# SPDX-License-Identifier: Apache-2.0
"""The help of ``monai-attn`` and of its subcommands, as they print it."""

from __future__ import annotations

import argparse

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
