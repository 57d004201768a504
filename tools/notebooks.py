"""Execute the notebooks of examples: `python tools/notebooks.py [--write FOLDER]`.

They are committed without outputs. An error in one, or a warning, ends this with its traceback.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "notebooks"
SECONDS = 120  # for a cell


def main() -> None:
    """Execute every notebook, and write it with its outputs where that is asked for."""
    parser = argparse.ArgumentParser(description="Execute the notebooks of examples.")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write them with outputs here")
    options = parser.parse_args()
    os.environ["PYTHONWARNINGS"] = "error::UserWarning"  # of the kernel
    for path in sorted(FOLDER.glob("*.ipynb")):
        book = nbformat.read(path, as_version=4)
        start = time.perf_counter()
        NotebookClient(book, timeout=SECONDS, resources={"metadata": {"path": FOLDER}}).execute()
        print(f"{path.name}: {time.perf_counter() - start:.1f} s")
        if options.write is not None:
            options.write.mkdir(parents=True, exist_ok=True)
            nbformat.write(book, options.write / path.name)


if __name__ == "__main__":
    main()
