"""``multihead config``: settings, what sets them, and what a C compiler needs to know."""

from __future__ import annotations

import argparse
import os
from typing import Any

from multihead.cli.console import Console
from multihead.cli.environment import VARIABLES
from multihead.threads import show_config

DESCRIPTION = (
    "Say what the engine is set to and what every environment variable that is read holds and "
    "means. With --cflags or --libs, print only what a C compiler needs to know."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--cflags", action="store_true", help="to include <multihead/bnns.h>")
    parser.add_argument("--libs", action="store_true", help="to link with the library")


def run(options: argparse.Namespace, console: Console) -> int:
    """Write the settings, or flags."""
    if options.cflags or options.libs:
        from multihead.bnns import library

        flags = {"cflags": [library.compile_flags()], "libs": library.link_flags()}
        asked = {name: words for name, words in flags.items() if getattr(options, name)}
        if console.document(options, asked):
            print(*[word for words in asked.values() for word in words])
        return 0
    config = show_config("dicts")
    document: dict[str, Any] = config | {
        "environment": [
            variable._asdict() | {"value": os.environ.get(variable.name)} for variable in VARIABLES
        ]
    }
    if console.document(options, document):
        names = {"version": "multihead", "isa": "instruction set", "available_isas": "available"}
        console.pairs({names.get(name, name): _words(value) for name, value in config.items()})
        for name, reader, meaning in VARIABLES:
            value = os.environ.get(name)
            console.heading(f"{name}={value}" if value else f"{name}, not set")
            console.say(f"{meaning} Read by the {reader}.".replace("`", ""))
    return 0


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
