"""The command line: ``multihead``, which is also ``python -m multihead``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from multihead.cli.arguments import new_file
from multihead.cli.console import Console

GOOD, BAD, USAGE = 0, 1, 2
INTERRUPTED = 130


class Command(NamedTuple):
    """A command: its name, the module that has it, and what it does in a few words.

    The module is imported when the command is named. It has `DESCRIPTION`, ``add_options(parser)``
    and ``run(options, console)``, which returns the exit status.
    """

    name: str
    module: str
    summary: str


COMMANDS = (
    Command("info", "multihead.cli.info", "what is installed, and what was found here"),
    Command("check", "multihead.cli.check", "hold this installation to the float64 oracle"),
    Command("bench", "multihead.cli.bench", "time it beside what else is installed"),
    Command("maps", "multihead.cli.maps", "where a model's heads look in a text, for a browser"),
    Command("plan", "multihead.cli.plan", "what attention over several machines would cost"),
    Command("config", "multihead.cli.config", "settings, and a C compiler's flags"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        The words after the program's name; default: those of this process.

    Returns
    -------
    int
        The exit status: 0, or 1 if the command's verdict is bad.

    Raises
    ------
    SystemExit
        With 2 where the words are wrong, after saying so.

    Examples
    --------
    >>> main(["paint"])
    Traceback (most recent call last):
        ...
    SystemExit: 2
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser(words).parse_args(words)
    try:
        status: int = options.run(options, Console())
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return GOOD
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="multihead",
        description="Multi-head attention for the CPU, forward and backward.",
        epilog="multihead COMMAND --help says more about one.",
    )
    parser.add_argument("--version", action=_Version, help="print the version")
    commands = parser.add_subparsers(
        title="commands", dest="command", required=True, metavar="COMMAND"
    )
    for name, module, summary in COMMANDS:
        known = commands.add_parser(name, help=summary)
        if name in words:  # the others need not be imported
            found = importlib.import_module(module)
            known.description = found.DESCRIPTION
            found.add_options(known)
            known.add_argument(
                "--json",
                nargs="?",
                const="-",
                type=new_file,
                metavar="FILE",
                help="print JSON; with FILE, write it there besides",
            )
            known.set_defaults(run=found.run, parser=known)
    return parser


class _Version(argparse.Action):
    """Print the version and end; it is looked up only then."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        from multihead import __version__

        print(f"multihead {__version__}")
        parser.exit(GOOD)
