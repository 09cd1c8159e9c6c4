# SPDX-License-Identifier: Apache-2.0
"""Parse a bundle's options: check names, convert values.

Only the standard library is imported, so that a misspelled option is answered at once.
"""

from __future__ import annotations

import ast
import copy
import difflib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from numbers import Number
from textwrap import shorten
from typing import Any

from monai_attn.errors import ConfigError

__all__ = ["is_reference", "parse_options", "parts_of", "read_options", "set_entry"]

_PATHS = ("bundle_root", "checkpoint", "input", "pretrained", "resume")
# what MONAI's tracking takes besides the entries of a bundle, if it is on
_TRACKING = {"tracking": None, "tracking_uri": "", "experiment_name": "", "run_name": "", "save_execute_config": None}
_POSITIVE, _NOT_NEGATIVE = r"lr|epochs|batch_size|\w+_interval|\w+_per_\w+", r"seed|num_workers"
_OF_ANY_COMPONENT = ("_target_", "_mode_", "_disabled_", "_requires_", "_desc_")


def parse_options(
    options: Mapping[str, Any],
    entries: Mapping[str, Any],
    arguments: Callable[[str], Collection[str] | None] | None = None,
) -> dict[str, Any]:
    """Check the names of options, and convert their values.

    ``none`` and ``null`` are None. If the default is a list, one word is a list of one, and words between commas are a
    list. If it is a text or a path, a number stays text. The type of a nested option is not checked: many arguments
    take several.

    Args:
        options: values, or texts of a command line.
        entries: the configuration, with the entries of later files, such as ``"validate#handlers"``, at the end.
        arguments: returns the arguments of a ``_target_``, or None for any; without it, only what nearly is an argument
            in the configuration is refused, since the classes are not known before they are imported.

    Raises:
        ConfigError: for a name that does not exist, with the nearest one, or a value of a wrong type.

    Example:
        >>> parse_options({"names": "liver", "out_dir": "2024"}, {"names": ["brain"], "out_dir": ".", "lr": 0.1})
        {'names': ['liver'], 'out_dir': '2024'}
    """
    known: dict[str, Any] = {}
    for key, value in ({**_TRACKING, **entries} if "tracking" in options else entries).items():
        set_entry(known, key, copy.deepcopy(value))
    read = {}
    for key in sorted(options, key=lambda key: not key.endswith("_target_")):  # which decides on the arguments
        default = _default(key, known, arguments)
        read[key] = _read(key, options[key], default)
        set_entry(known, key, read[key])
    return {key: read[key] for key in options}


def read_options(words: Sequence[str]) -> dict[str, str]:
    """Read ``--key value ...`` and ``--key=value``; several values are a list, none is True.

    Raises:
        ConfigError: for a value without a key.

    Example:
        >>> read_options(["--structures", "liver", "spleen", "--amp", "--lr=0.1"])
        {'structures': '[liver,spleen]', 'amp': 'True', 'lr': '0.1'}
    """
    options: dict[str, list[str]] = {}
    key = ""
    for word in words:
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            options[key] = [value] if equals else []
        elif not key:
            raise ConfigError(word, "it belongs to no option", "give it behind a --key, or see --help")
        else:
            options[key].append(word)
    return {key: v[0] if len(v) == 1 else f"[{','.join(v)}]" if v else "True" for key, v in options.items()}


def parts_of(key: str) -> list[str]:
    """Return the names in an option.

    Example:
        >>> parts_of("+train#handlers")
        ['train', 'handlers']
    """
    return key.lstrip("+").replace("::", "#").split("#")


def is_reference(value: Any) -> bool:
    """Return whether a value is an expression or refers to an entry.

    Example:
        >>> is_reference("@unet"), is_reference("unet")
        (True, False)
    """
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def set_entry(entries: dict[str, Any], key: str, value: Any) -> None:
    """Set an entry of a configuration, if there is a place for it.

    Example:
        >>> set_entry(entries := {"network_def": {"features": 24}}, "network_def#features", 32)
        >>> entries
        {'network_def': {'features': 32}}
    """
    *above, last = parts_of(key)
    node: Any = entries
    with suppress(KeyError, IndexError, TypeError, ValueError):
        for part in above:
            node = node[int(part) if isinstance(node, list) else part]
        if not key.startswith("+"):
            node[int(last) if isinstance(node, list) else last] = value


def _default(key: str, entries: dict[str, Any], arguments: Callable[[str], Collection[str] | None] | None) -> Any:
    """Return the value in the configuration, None if it has none."""
    node: Any = entries
    above: list[str] = []
    for part in parts_of(key):
        if isinstance(node, dict) and part in node:
            node = node[part]
        elif isinstance(node, list) and re.fullmatch(r"\d+", part) and int(part) < len(node):
            node = node[int(part)]
        else:
            _check_absent(key, "#".join(above), part, node, arguments)
            return None
        above.append(part)
    return node


def _check_absent(
    key: str, above: str, part: str, node: Any, arguments: Callable[[str], Collection[str] | None] | None
) -> None:
    """Raise unless an entry that is not there may be added."""
    target = node.get("_target_") if isinstance(node, dict) else None
    names = arguments(target) if target and arguments else None
    if target and part in (*_OF_ANY_COMPONENT, *(names or ())):
        return
    may_be = bool(target) and names is None
    present = node if isinstance(node, dict) else ()
    nearest = difflib.get_close_matches(part, {*present, *(names or ())}, n=1, cutoff=0.9 if may_be else 0.6)
    if may_be and not nearest:
        return
    better = f"did you mean --{above}{'#' if above else ''}{nearest[0]}? " if nearest else ""
    value = "" if isinstance(node, dict) else f", which is {shorten(str(node), 60)}"
    problem = f"no entry named '{part}' in {above or 'the configuration'}{value}"
    raise ConfigError(f"--{key}", problem, f"{better}`monai-attn info BUNDLE` lists the options")


def _literal(text: str) -> Any:
    """Return a text as Python or JSON understands it, else as it is."""
    if is_reference(text):
        return None if text == "$None" else text
    if text.lower() in ("none", "null"):
        return None
    for read in (ast.literal_eval, json.loads):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            value = read(text)
            return value if isinstance(value, (type(None), bool, int, float, str, list, tuple, dict)) else text
    return text


def _kind(value: Any) -> str:
    kinds = {"True or False": bool, "a number": Number, "text": str, "a component": dict, "a list": list}
    return next((kind for kind, types in kinds.items() if isinstance(value, types)), type(value).__name__)


def _read(key: str, given: Any, default: Any) -> Any:
    """Return a value as meant; raise if its type or size is clearly wrong."""
    what, fix = f"--{key} {given}", "correct it, or leave the option out"
    last, nested = parts_of(key)[-1], len(parts_of(key)) > 1
    is_path = last in _PATHS or last.endswith("_dir")
    default = "" if is_path else False if last in ("amp", "bf16") else default  # which are expressions
    value = _literal(given) if isinstance(given, str) else given
    value = list(value) if isinstance(value, tuple) else value
    if isinstance(value, str) and "#" in value and not is_reference(value):
        raise ConfigError(what, "MONAI would read # as a separator", "rename it, or give the folder above it")
    number = value if isinstance(value, (int, float)) else 1
    if not 0 < number < math.inf and re.fullmatch(_POSITIVE, key):
        raise ConfigError(what, "expected a positive number", fix)
    if number < 0 and re.fullmatch(_NOT_NEGATIVE, key):
        raise ConfigError(what, "expected 0 or more", fix)
    if value is None or default is None or is_reference(value) or is_reference(default) or (nested and not is_path):
        return value
    wanted, items = _kind(default), {_kind(item) for item in default} if isinstance(default, list) else set()
    if wanted == "text":
        return str(given) if isinstance(value, (int, float)) and (key, value) != ("resume", True) else value
    if items == {"text"} and isinstance(value, str):
        value = [word.strip(" '\"") for word in value.strip("[] ").split(",")]
    value = bool(value) if isinstance(default, bool) and value in (0, 1) else value
    if type(default) is int and isinstance(value, float):
        wanted, value = (wanted, int(value)) if value.is_integer() else ("a whole number", value)
    found = [item for item in value if item is not None and not is_reference(item)] if isinstance(value, list) else []
    if _kind(value) != wanted or (len(items) == 1 and not {*map(_kind, found)} <= items):
        raise ConfigError(what, f"expected {wanted}, as the default is {shorten(str(default), 80)}", fix)
    if items == {"text"} and len({*found}) < len(found):
        raise ConfigError(what, "a name is repeated", "give each name once")
    return value
