"""Check the compiled kernels: `python tools/check_kernels.py BUILD_DIRECTORY`.

Each instruction set has its own object file. A weak symbol in one of them (an inline function or a
template that several files share) may be the copy that the linker keeps for all, and then an older
processor meets instructions that it does not have.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# value, letter of the class, name
WEAK = re.compile(r"[0-9a-f]+ [WVu] ")


def weak_symbols(path: Path) -> list[str]:
    """Lines that nm prints for weak definitions in an object file."""
    listing = subprocess.run(
        ["nm", "-C", str(path)], check=True, capture_output=True, text=True
    ).stdout
    return [line for line in listing.splitlines() if WEAK.match(line)]


def main() -> None:
    """Look through the package's kernel objects below the directory named on the command line."""
    build = Path(sys.argv[1])
    ours = [path for path in build.iterdir() if path.name not in ("cross", "sanitize")]
    objects = [path for folder in ours for path in folder.rglob("*.o")]
    kernels = sorted(path for path in objects if "kernels" in path.parts[-2] + path.name)
    if not kernels:
        raise SystemExit(f"{build}: no kernel objects found")
    found = [f"{path}: {line}" for path in kernels for line in weak_symbols(path)]
    if found:
        raise SystemExit("weak symbols in kernel objects:\n" + "\n".join(found))
    print(f"{len(kernels)} kernel objects, no weak symbols")


main()
