"""Types of the options of several commands; what is wrong with a word is said in a sentence."""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path


def new_file(text: str) -> str:
    """Take the name of a file to write, or ``-``.

    Examples
    --------
    >>> new_file("/")
    Traceback (most recent call last):
        ...
    argparse.ArgumentTypeError: expected a file in a folder that can be written, got '/'
    """
    path = Path(text)
    target = path if path.exists() else path.parent
    if text != "-" and (path.is_dir() or not os.access(target, os.W_OK)):
        message = f"expected a file in a folder that can be written, got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return text


def count(text: str) -> int:
    """Take an integer of at least 1.

    Examples
    --------
    >>> count("two")
    Traceback (most recent call last):
        ...
    argparse.ArgumentTypeError: expected an integer of at least 1, got 'two'
    """
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def amount(text: str, what: str = "number") -> float:
    """Take a number above 0.

    Examples
    --------
    >>> amount("-1")
    Traceback (most recent call last):
        ...
    argparse.ArgumentTypeError: expected a number above 0, got '-1'
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a {what} above 0, got {text!r}")
    return number


def seconds(text: str) -> float:
    """Take a number of seconds above 0.

    Examples
    --------
    >>> seconds("-1")
    Traceback (most recent call last):
        ...
    argparse.ArgumentTypeError: expected a number of seconds above 0, got '-1'
    """
    return amount(text, "number of seconds")
