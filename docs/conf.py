"""Configuration of the documentation site, built by `python -m sphinx -W --keep-going docs build/docs`.

Nothing is fetched while the site is built or read: no web fonts, no scripts and no references to other sites' indexes.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

import prune_env

project = "prune_env"
author = "The prune_env authors"
copyright = "The prune_env authors, MIT licence"
version = release = prune_env.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

html_theme = "furo"
html_title = "prune_env"
html_show_sphinx = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["custom.css"]

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3  # [text](page.md#a-heading) works as on GitHub

# The tutorial runs at every build, in a temporary folder; an error in it fails the build.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_output_stderr = "remove"  # progress bars
nb_merge_streams = True

smartquotes = False  # docstrings contain quoted code
default_role = "py:obj"  # docstrings write `name`, which becomes a link where the name is documented
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 100


def setup(app: Sphinx) -> None:
    """Read docstrings as plain text with `code`, before napoleon reads their Google style sections."""
    app.connect("autodoc-process-docstring", _escape_markup, priority=400)


def _escape_markup(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("`")
            parts[::2] = [re.sub(r"[*|]|_(?=\W|$)", r"\\\g<0>", part) for part in parts[::2]]  # outside of `code`
            lines[number] = "`".join(parts)
