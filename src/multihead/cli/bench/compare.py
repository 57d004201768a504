"""A run beside an earlier one: how much time our layer takes of what it took."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from multihead.cli.bench.contenders import OURS
from multihead.cli.bench.report import milliseconds, quiet
from multihead.cli.console import Cell, Console

NOISE = 1.1  # what differs by less is called the same
KIND = "multihead bench"


def earlier(text: str) -> dict[str, Any]:
    """Take the name of a file that ``multihead bench --json`` wrote, and read it.

    Examples
    --------
    >>> earlier("/nowhere.json")
    Traceback (most recent call last):
        ...
    argparse.ArgumentTypeError: cannot read '/nowhere.json': No such file or directory
    """
    try:
        found = json.loads(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        message = f"cannot read {text!r}: {error.strerror}"
        raise argparse.ArgumentTypeError(message) from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("kind") != KIND:
        message = f"expected a file that `multihead bench --json` wrote, got {text!r}"
        raise argparse.ArgumentTypeError(message.replace("`", ""))
    return found


def compared(document: dict[str, Any], old: dict[str, Any]) -> list[dict[str, Any]]:
    """Return, for each cell that both runs have, our times, their ratio and a verdict.

    Examples
    --------
    >>> def run(ms):
    ...     cell = {"shape": [1, 2, 4, 1], "pass": "forward", "granted": 1.0}
    ...     return {"dtype": "float32", "cells": [cell | {"times": {OURS: {"median_ms": ms}}}]}
    >>> compared(run(3.0), run(2.0))[0]["verdict"]
    'slower'
    """
    before = {(old["dtype"], *cell["shape"], cell["pass"]): cell for cell in old["cells"]}
    found = []
    for cell in document["cells"]:
        other = before.get((document["dtype"], *cell["shape"], cell["pass"]))
        if other is None:
            continue
        was, now = (each["times"][OURS]["median_ms"] for each in (other, cell))
        verdict = "slower" if now > NOISE * was else "faster" if was > NOISE * now else "same"
        if not (quiet(cell) and quiet(other)):
            verdict = "busy"
        place = {"shape": cell["shape"], "pass": cell["pass"]}
        times = {"before_ms": was, "now_ms": now, "ratio": round(now / was, 3)}
        found.append(place | times | {"verdict": verdict})
    return found


def write(console: Console, document: dict[str, Any], old: dict[str, Any]) -> None:
    """Write the comparison."""
    found = document["compared"]
    console.heading(f"since {old['date']}")
    for name in ("version", "isa", "threads", "dtype"):
        if old[name] != document[name]:
            console.say(f"The earlier run had {name} {old[name]}, this one {document[name]}.")
    if old["machine"]["processor"] != document["machine"]["processor"]:
        console.say(f"The earlier run was on another machine: {old['machine']['processor']}.")
    if not found:
        console.say("The runs have no shape in common in one dtype.")
        return
    table: list[list[Cell]] = [["(N, L, E, H)", "pass", "before", "now", "ratio", ""]]
    styles = {"slower": "red", "faster": "green", "busy": "yellow"}
    for each in found:
        times = milliseconds(each["before_ms"]), milliseconds(each["now_ms"])
        verdict: Cell = (each["verdict"], styles.get(each["verdict"], ""))
        shape = ",".join(map(str, each["shape"]))
        table.append([shape, each["pass"], *times, f"{each['ratio']:.2f}", verdict])
    console.table(table, right=(2, 3, 4))
    console.line()
    slower = [each for each in found if each["verdict"] == "slower"]
    judged = [each for each in found if each["verdict"] != "busy"]
    if judged:
        count = f"{len(slower) or 'none'} of {len(judged)}"
        console.say(f"Slower by more than {NOISE - 1:.0%}: {count}.", "red" if slower else "")
    if len(judged) < len(found):
        missing = f"{len(found) - len(judged)} of {len(found)} are not judged"
        console.say(f"{missing}: the machine was busy, in one run or both.", "yellow")
