"""The command line: ``python -m multihead``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from multihead.maps import command
from multihead.threads import show_config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after the program's name; default: those of this process.

    Returns
    -------
    int
        The exit status: 0, or 2 after an error.

    Examples
    --------
    >>> main(["paint"])
    Traceback (most recent call last):
        ...
    SystemExit: 2
    """
    options = _parser().parse_args(arguments)
    if options.command == "maps":
        return command.run(options)
    _config(options.cflags, options.libs)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m multihead", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    config = commands.add_parser(
        "config",
        help="print version, instruction sets and threads, or a C compiler's flags",
        description="Say what is installed; with an option, only what a C compiler needs to know.",
    )
    config.add_argument("--cflags", action="store_true", help="to include <multihead/bnns.h>")
    config.add_argument("--libs", action="store_true", help="to link with the library")

    maps = commands.add_parser(
        "maps",
        help="write where an encoder's heads look in a text, for a browser",
        description=command.DESCRIPTION,
    )
    command.add_arguments(maps)
    return parser


def _config(cflags: bool, libs: bool) -> None:
    if not (cflags or libs):
        show_config()
        return
    from multihead.bnns import library

    print(*[library.compile_flags()] * cflags, *library.link_flags() * libs)
