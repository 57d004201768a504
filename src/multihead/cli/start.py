"""How the command ends where an environment variable keeps the package from being imported."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from itertools import pairwise

from multihead.cli import USAGE
from multihead.cli.environment import VARIABLES


def is_command(arguments: Sequence[str], original: Sequence[str]) -> bool:
    """Return whether a process is ``multihead`` or ``python -m multihead``, not yet begun.

    Parameters
    ----------
    arguments, original : sequence of str
        ``sys.argv`` and ``sys.orig_argv``.

    Examples
    --------
    >>> is_command(["/usr/bin/multihead", "info"], ["python", "/usr/bin/multihead", "info"])
    True
    >>> is_command(["-m", "info"], ["python", "-m", "multihead", "info"])
    True
    >>> is_command(["-m", "info"], ["python", "-Im", "multihead", "info"])
    True
    >>> is_command(["-m", "multihead"], ["python", "-m", "pytest", "multihead"])
    False
    """
    if arguments[:1] == ["-m"]:  # until Python has found the module
        named = (name for word, name in pairwise(original) if re.fullmatch(r"-\w*m", word))
        return next(named, "") == "multihead"
    program = os.path.basename(arguments[0]) if arguments else ""
    return program in ("multihead", "multihead.exe")


def end_if_command(error: ImportError) -> None:
    """End the command in one line if `error` is about an environment variable.

    Raises
    ------
    SystemExit
        With 2.
    """
    names = [variable.name for variable in VARIABLES]
    if str(error).partition(":")[0] in names and is_command(sys.argv, sys.orig_argv):
        print(f"multihead: {error}", file=sys.stderr)
        raise SystemExit(USAGE) from None
