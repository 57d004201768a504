"""Write what the commands write into the pages: `python tools/command_line.py [COMMAND ...]`.

Into docs/command_line.md and docs/scaling.md goes the output of each command, or of those that are
named, at 72 columns; into docs/environment.md the table of the environment's variables.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from multihead.cli.environment import VARIABLES, table

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / name for name in ("command_line.md", "scaling.md")]
ENVIRONMENT = ROOT / "docs" / "environment.md"
COMMAND = re.compile(r"(<!-- multihead ([\w. -]+?) -->\n).*?(<!-- / -->)", re.S)
READ = {variable.name for variable in VARIABLES}
TABLE = re.compile(r"(<!-- environment -->\n).*?(<!-- /environment -->)", re.S)


def output(command: str) -> str:
    """Run a command and return what it writes, its own words first."""
    kept = {name: value for name, value in os.environ.items() if name not in READ}
    done = subprocess.run(
        [sys.executable, "-m", "multihead", *command.split()],
        env=kept | {"COLUMNS": "72"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    if done.returncode:
        raise SystemExit(done.stdout)
    # where it lies on the writer's disk is nobody's business
    text = re.sub(r"^(lies in +).*$", r"\1.../site-packages/multihead", done.stdout, flags=re.M)
    return f"```console\n$ multihead {command}\n{text}```\n"


def main() -> None:
    """Write the pages."""
    asked = sys.argv[1:]

    def written(match: re.Match[str]) -> str:
        if asked and match[2] not in asked:
            return match[0]
        return match[1] + output(match[2]) + match[3]

    for page in PAGES:
        page.write_text(COMMAND.sub(written, page.read_text()))
    ENVIRONMENT.write_text(
        TABLE.sub(lambda match: match[1] + table() + match[2], ENVIRONMENT.read_text())
    )


if __name__ == "__main__":
    main()
