"""Make the virtual environment that the Makefile works in: `python tools/environment.py .venv`.

Creates it if it is missing, installs what the build needs, jaxlib too where there is one, and says
in plain words what a machine lacks. Runs on any Python 3, also on one that is too old for the
package.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

OLDEST = (3, 10)
# as in cmake/compiler.cmake
OLDEST_COMPILER = {"GCC": 12, "Clang": 14}


def lacking() -> str:
    """Say what must be installed first; nothing if the machine is ready."""
    if sys.version_info < OLDEST:
        found = sys.version.split()[0]
        return f"Python 3.10 or newer, not {found}; name another: make PYTHON=python3.12"
    if find_spec("venv") is None or find_spec("ensurepip") is None:
        return "Python's venv and ensurepip modules (Debian, Ubuntu: apt install python3-venv)"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers (Debian, Ubuntu: apt install python3-dev)"
    return compiler_lacking()


def compiler_lacking() -> str:
    """Say which C++ compiler is needed, if the one that the build takes is missing or too old."""
    needed = " or newer, or ".join(f"{name} {oldest}" for name, oldest in OLDEST_COMPILER.items())
    chosen = os.environ.get("CXX", "").split()
    found = [name for name in chosen[:1] or ["c++", "g++", "clang++"] if shutil.which(name)]
    if not found:
        missing = f", and there is no {chosen[0]}" if chosen else ""
        return f"{needed} or newer{missing} (Debian, Ubuntu: apt install g++)"
    command = [*(chosen or found[:1]), "-x", "c++", "-dM", "-E", os.devnull]
    listing = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    macros = dict(re.findall(r"#define (\w+) (\w+)", listing.decode()))
    name = "Clang" if "__clang__" in macros else "GCC"
    version = macros.get("__clang_major__", macros.get("__GNUC__", ""))
    if version and int(version) >= OLDEST_COMPILER[name]:
        return ""
    other = f"{name} {version}" if version else "another compiler"
    return f"{needed} or newer, not {other} ({command[0]}); name another: make CXX=clang++"


def build_requirements() -> list:
    """List the packages that pyproject.toml builds with, and the build tools from PyPI."""
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    requires = re.search(r"^requires\s*=\s*(\[.*?\])", project.read_text(), re.M | re.S)
    if requires is None:
        raise SystemExit(f"{project}: [build-system] names no requirements")
    return [*ast.literal_eval(requires[1]), "cmake", "ninja"]


def main() -> None:
    """Create the environment named on the command line, and fill it."""
    need = lacking()
    if need:
        raise SystemExit("multihead needs " + need)
    target = Path(sys.argv[1])
    python = target / "bin" / "python"
    if not python.exists():
        print("creating", target, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(target)], check=True)
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*install, *build_requirements()], check=True)
    constraints = Path(__file__).resolve().parents[1] / "constraints.txt"
    jaxlib = [*install, "--constraint", str(constraints), "jaxlib"]
    if subprocess.run(jaxlib, stderr=subprocess.DEVNULL).returncode != 0:
        print("no jaxlib for this Python and system: multihead.jax is not built", flush=True)


main()
