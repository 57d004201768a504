"""Settings of the documentation: `make docs`."""

from __future__ import annotations

from importlib import metadata

project = "multihead"
author = "The multihead developers"
version = release = metadata.version("multihead")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "myst_parser", "numpydoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"multihead {release}"

autosummary_generate = True
autodoc_typehints = "none"
numpydoc_class_members_toctree = False
numpydoc_show_inherited_class_members = False
myst_heading_anchors = 3
