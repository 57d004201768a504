"""Settings of the documentation: `make docs`."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

from numpydoc.xref import DEFAULT_LINKS

sys.path.append(str(Path(__file__).parent / "_extensions"))

project = "multihead"
author = "The multihead developers"
version = release = metadata.version("multihead")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "myst_parser",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "complete",
    "mathml",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"multihead {release}"
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_copyright = False

# one page for each public name: those of a module's __all__
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_typehints = "none"
numpydoc_show_class_members = False
numpydoc_xref_param_type = True
numpydoc_xref_ignore = "all"  # of a type's words only these are names
DEFAULT_LINKS.clear()  # such as bool, to pages that a build without a network cannot ask for
numpydoc_xref_aliases = {
    name: f":py:obj:`~multihead.{name}`"
    for name in ("KVCache", "MultiheadAttention", "Ragged", "Rope")
}
default_role = "autolink"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# names of ours must be found; those of others have no pages here
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!multihead\b).*")]

linkcheck_timeout = 20
linkcheck_retries = 2
