# SPDX-License-Identifier: Apache-2.0
"""The help of ``monai-attn`` and of its subcommands, as they print it."""

from __future__ import annotations

import io
import os
import re
from contextlib import redirect_stdout, suppress
from unittest.mock import patch

from monai_attn import cli

__all__ = ["help_texts"]


def help_texts() -> dict[str, str]:
    """Return the help of every command, under the words that call it."""
    main = _help()
    commands = re.findall(r"^    ([a-z]+)(?: |$)", main, flags=re.MULTILINE)
    return {"monai-attn": main} | {f"monai-attn {command}": _help(command) for command in commands}


def _help(*words: str) -> str:
    screen = io.StringIO()
    with redirect_stdout(screen), suppress(SystemExit), patch.dict(os.environ, COLUMNS="102"):
        cli.main([*words, "--help"])
    return screen.getvalue()
