# SPDX-License-Identifier: Apache-2.0
"""How the documentation is built: ``make docs``. Nothing is fetched from a network, neither now nor by the reader."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util import inspect
from sphinx.util.inspect import stringify_signature

import monai_attn

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_extensions"))

project = "monai_attn"
author = copyright = "the monai_attn authors"
version = release = monai_attn.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "directives",
    "links",
    "mathml",
]
exclude_patterns = ["_build", "reproduce/results", "**/.ipynb_checkpoints"]

html_theme = "furo"
html_title = f"monai_attn {version}"
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["page.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks keep the outputs of real data

autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# what other packages document cannot be looked up without a network; what this one does must be there
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!monai_attn\b).*")]

copybutton_exclude = ".linenos, .gp, .go"  # the answers of Python's prompt

logging.getLogger("asyncio").setLevel(logging.ERROR)


def escape_stars(_app: Sphinx, _what: str, _name: str, _thing: object, _options: object, lines: list[str]) -> None:
    """In docstrings, keep the star of a shape such as (B, C, *spatial) from being taken for emphasis."""
    lines[:] = [
        line if line.lstrip().startswith(">>>") else re.sub(r"(?<=[ (])\*(?=[a-z(])", r"\*", line) for line in lines
    ]


def hide_private_bases(_app: Sphinx, _name: str, _thing: object, _options: object, bases: list[type]) -> None:
    """Name the public class behind a private one that a class is made of."""
    for i, base in enumerate(bases):  # NamedTuple is a function
        bases[i] = next(each for each in getattr(base, "__mro__", [base]) if not each.__name__.startswith("_"))


def show_arguments(
    _app: Sphinx, what: str, _name: str, thing: type, _options: object, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Show the arguments of a dictionary transform, which MONAI's ``MapTransform.__new__`` would hide."""
    if what == "class" and signature == "(*args, **kwargs)":
        signature = stringify_signature(
            inspect.signature(thing.__init__, bound_method=True),
            show_return_annotation=False,
            unqualified_typehints=True,
        )
    return signature, returns


def skip_repetitions(_app: Sphinx, _what: str, name: str, thing: object, skip: bool, _options: object) -> bool:
    """Leave out other names of a transform, and the fields of a named tuple: its docstring says more than Python's."""
    alias = name.endswith(("D", "Dict")) and getattr(thing, "__name__", name) != name
    return skip or alias or (getattr(thing, "__doc__", None) or "").startswith("Alias for field number")


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", escape_stars)
    app.connect("autodoc-process-bases", hide_private_bases)
    app.connect("autodoc-process-signature", show_arguments)
    app.connect("autodoc-skip-member", skip_repetitions)
