"""Run the commands that a page shows, and write what they print below them.

python tools/outputs.py docs/examples.md --only finetune

A command stands in the page as ``<!-- output: COMMAND -->``; the block after it is its output.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- output: (.+?) -->\n```text\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)


def output(command: str) -> str:
    """Return what a command prints; python is this one."""
    words = shlex.split(command)
    if words[0] == "python":
        words[0] = sys.executable
    environment = os.environ | {"COLUMNS": "100"}
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines()) + "\n"


def main() -> None:
    """Fill the blocks of a page."""
    parser = argparse.ArgumentParser(description="Write commands' outputs into a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--only", default="", metavar="TEXT", help="commands with this in them")
    options = parser.parse_args()

    def filled(block: re.Match[str]) -> str:
        before, command, kept, after = block.groups()
        if options.only in command:
            print(command, file=sys.stderr)
            kept = output(command)
        return before + kept + after

    page = options.page.read_text()
    if not any(options.only in command for _, command, _, _ in BLOCK.findall(page)):
        parser.error(f"{options.page}: expected a command with {options.only!r}, got none")
    options.page.write_text(BLOCK.sub(filled, page))


if __name__ == "__main__":
    main()
