# SPDX-License-Identifier: Apache-2.0
"""The entries of a bundle's configurations as tables, with the meanings that its README gives them.

They are made when the documentation is built, so that no default on the site can be another than that of the bundle.
"""

from __future__ import annotations

import inspect
import json
import pydoc
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from links import relink

__all__ = ["BUNDLES", "CONFIGURATIONS", "documented", "tables"]

BUNDLES = Path(__file__).parents[2] / "bundles"
CONFIGURATIONS = ("train", "baselines", "evaluate", "inference")
_INTERNAL = ("imports", "initialize", "run")
_ABSENT = object()
# of entries of which a README says nothing
_MEANINGS = {
    "aspp_fusion": "how `@aspp` joins its branches: `cat` or `sum`",
    "bundle_root": "folder of the bundle",
    "in_channels": "channels of an image",
    "lr_scheduler": "one of the components below",
    "network": "the network on its device",
    "optimizer": "one of the components below",
    "out_channels": "channels of the output",
    "structures": "names of the structures",
}


def documented(bundle: Path) -> dict[tuple[str, ...], str]:
    """The rows of the table of overrides in the README: the entries of each, and what it says of them."""
    text = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    found = {}
    for row in re.findall(r"^\| (`.*) \|$", text[text.index("### Overrides") :], flags=re.MULTILINE):
        keys, _default, meaning = (cell.strip() for cell in re.split(r"(?<!\\)\|", row))
        found[tuple(re.findall(r"`([\w#]+)`", keys))] = meaning
    return found


def tables(bundle: Path) -> str:
    """All plain entries of a bundle's configurations with defaults and meanings, and its components, in Markdown.

    The rows are those of the README, and then what is not in there.
    """
    configs = {name: json.loads((bundle / "configs" / f"{name}.json").read_text()) for name in CONFIGURATIONS}
    rows = documented(bundle)
    known = {key for keys in rows for key in keys}
    plain, components = [], {}
    for config in configs.values():
        for key, value in config.items():
            if isinstance(value, dict) and "_target_" in value:
                components[key] = value["_target_"]
            elif not (key in _INTERNAL or "#" in key or _is_structure(value)):
                plain.append(key)
        plain += [f"network_def#{key}" for key in config.get("network_def", {})]
    rows |= {(key,): "" for key in dict.fromkeys(plain) if key not in known}
    return "\n".join(
        ["| entry | default | of | meaning |", "|---|---|---|---|"]
        + [_row(keys, configs, meaning) for keys, meaning in rows.items()]
        + ["", "Components, to be referred to (`@name`) or changed (`--name#argument`):", ""]
        + ["| entry | class |", "|---|---|", *(f"| `{key}` | `{name}` |" for key, name in components.items()), ""]
    )


def _is_structure(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value))


def _row(keys: Sequence[str], configs: Mapping[str, Any], meaning: str) -> str:
    entries = ", ".join(f"`{key}`" for key in keys)
    defaults = ", ".join(_default(key, configs) for key in keys)
    holders = [name for name, config in configs.items() if any(_has(config, key) for key in keys)]
    return f"| {entries} | {defaults} | {', '.join(holders)} | {relink(meaning or _MEANINGS.get(keys[0], ''))} |"


def _default(key: str, configs: Mapping[str, Any]) -> str:
    """The default of an entry, or those of each configuration if they differ."""
    shown = {name: _shown(_value(config, key)) for name, config in configs.items() if _has(config, key)}
    if len(set(shown.values())) == 1:
        return next(iter(shown.values()))
    return "; ".join(f"{name}: {text}" for name, text in shown.items())


def _has(config: Any, path: str) -> bool:
    return _value(config, path) is not _ABSENT


def _value(config: Any, path: str) -> Any:
    """The value of an entry such as ``network_def#se``, perhaps the default of the argument of a component's class."""
    for name in path.split("#"):
        if isinstance(config, dict):
            config = config[name] if name in config else _argument(config.get("_target_", ""), name)
        else:
            config = config[int(name)] if isinstance(config, list) and int(name) < len(config) else _ABSENT
    return config


def _argument(target: str, name: str) -> Any:
    """The default of an argument of a class, which is named with its module."""
    found = pydoc.locate(target) if "." in target else None
    parameter = inspect.signature(found).parameters.get(name) if callable(found) else None
    return parameter.default if parameter and parameter.default is not parameter.empty else _ABSENT


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return f"`{value.get('_target_', '…')}`"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{text}`".replace("|", "\\|") if text else "empty"
