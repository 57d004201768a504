"""Every public name has a page.

A name without one is a warning, which `make docs` takes for an error.
"""

from __future__ import annotations

import importlib
from typing import Any

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

MODULES = (
    "",
    ".functional",
    ".reference",
    ".checkpoint",
    ".maps",
    ".plot",
    ".torch",
    ".jax",
    ".distributed",
    ".distributed.threads",
    ".distributed.process_group",
    ".distributed.mpi",
    ".bnns",
)
logger = logging.getLogger(__name__)


def check(app: Sphinx, env: BuildEnvironment) -> None:
    """Look for each name of each ``__all__`` among what the pages describe."""
    described = env.domains.python_domain.objects
    for module in MODULES:
        space = f"multihead{module}"
        for name in getattr(importlib.import_module(space), "__all__", ()):
            if f"{space}.{name}" not in described:
                logger.warning("no page describes %s.%s", space, name)


def setup(app: Sphinx) -> dict[str, Any]:
    """Check once all pages are read."""
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
