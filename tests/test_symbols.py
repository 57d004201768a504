"""What the shared libraries show to the linker, and what they need from it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import multihead
from apple_library import FUNCTIONS

PACKAGE = Path(multihead.__file__).parent
ENGINE = [path for path in PACKAGE.iterdir() if re.match(r"libmultihead\.", path.name)]
FOR_XLA = [path for path in PACKAGE.iterdir() if path.name.startswith("libmultihead_")]
NATIVE = [path for path in PACKAGE.iterdir() if re.match(r"_native\..*(so|dylib)$", path.name)]
# symbols that linkers add to every library
LINKER = {"_init", "_fini", "_edata", "_end", "__bss_start"}


def exported(library: Path) -> set[str]:
    """Names that a library defines for others."""
    options = ["-gU"] if sys.platform == "darwin" else ["-D", "--defined-only"]
    listing = subprocess.run(
        ["nm", *options, str(library)], check=True, capture_output=True, text=True
    ).stdout
    # a Mach-O name starts with one more underscore
    start = 1 if sys.platform == "darwin" else 0
    names = {line.split()[-1].partition("@")[0][start:] for line in listing.splitlines()}
    return names - LINKER


def test_the_package_holds_one_engine_and_one_face() -> None:
    assert len(ENGINE) == 1
    assert len(NATIVE) == 1
    assert len(FOR_XLA) <= 1  # where there was a jaxlib


def test_the_engine_exports_its_c_api_and_its_private_table_alone() -> None:
    assert exported(ENGINE[0]) == {
        # on macOS these are Accelerate's
        *(FUNCTIONS if sys.platform != "darwin" else ()),
        *(f"multihead_{name}" for name in FUNCTIONS),
        "multihead_last_error",
        "multihead_set_num_threads",
        "multihead_get_num_threads",
        "multihead_private_table",
    }


def test_the_face_exports_python_s_entry_point_alone() -> None:
    # nanobind's exceptions have type information that must be one in a process
    names = {name for name in exported(NATIVE[0]) if not re.match(r"_ZT[ISV]N8nanobind", name)}
    assert names == {"PyInit__native"}


@pytest.mark.parametrize("library", FOR_XLA, ids=lambda path: path.name)
def test_the_library_for_xla_exports_its_handlers_alone(library: Path) -> None:
    handlers = {
        f"multihead_{what}_{way}"
        for what in ("attention", "layer")
        for way in ("forward", "backward")
    }
    assert exported(library) == {*handlers, "multihead_layer_cache_bytes", "multihead_xla_version"}


@pytest.mark.parametrize("library", [*ENGINE, *NATIVE, *FOR_XLA], ids=lambda path: path.name)
def test_no_openmp_runtime_is_needed(library: Path) -> None:
    tool = ["otool", "-L"] if sys.platform == "darwin" else ["readelf", "-d"]
    needed = subprocess.run(
        [*tool, str(library)], check=True, capture_output=True, text=True
    ).stdout
    assert not re.search(r"lib(gomp|omp|iomp)", needed)
