"""Safetensors files, read with distrust and written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from typing import Any

from multihead.arrays import Array
from multihead.checks import wrong

Path = str | os.PathLike[str]

_HEADER = 2**20  # bytes; what we write is a thousandth of it
_DTYPES = ("F64", "F32", "F16", "U16", "I64")  # those that we write


def read(path: Path, key: str, writer: str) -> tuple[Any, dict[str, Array]]:
    """Return what a file says of itself under a key of its metadata, and its tensors."""
    safetensors()
    from safetensors import safe_open

    with open(path, "rb") as file:  # what the system has to say comes first, and as it says it
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, _HEADER + 1))
    with refused(path, writer):
        if size > _HEADER:
            raise ValueError(f"a header of {size} bytes, over {_HEADER}")
        _check_header(_strict(header.decode()))
        with safe_open(path, framework="numpy") as opened:
            note = _strict((opened.metadata() or {})[key])
            return note, {name: opened.get_tensor(name) for name in opened.keys()}


def write(path: Path, tensors: dict[str, Array], metadata: dict[str, str]) -> None:
    """Write a file beside `path` and then give it that name: a reader sees the old one or the new.

    What has been written is on the disk before the name changes. A link is followed, permissions of
    a file that is there are kept, and what is no file, a pipe for one, is written to as it is.
    """
    data = safetensors().save(tensors, metadata=metadata)
    target = os.path.realpath(os.fsdecode(path))
    try:
        _replace(target, data)
    except OSError as error:  # in the words of the name that the caller knows
        raise OSError(error.errno, error.strerror, target) from None


@contextlib.contextmanager
def refused(path: Path, writer: str) -> Iterator[None]:
    """Raise one error for a file that is not what it should be."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, LookupError, RecursionError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"[:400]
        reason = "".join(x if x.isprintable() else ascii(x)[1:-1] for x in said)[:400]
        expected = f"a file that {writer} wrote"
        raise wrong("path", expected, f"{os.fspath(path)} ({reason})") from None
    except MemoryError as error:
        raise MemoryError(
            f"path: {os.fspath(path)} asks for more than there is ({error})"
        ) from None


def safetensors() -> Any:
    """Return `safetensors.numpy`, or raise an error that says how to get it."""
    try:
        import safetensors.numpy
    except ImportError as error:
        message = 'checkpoints need safetensors: pip install "multihead[checkpoint]"'
        raise ImportError(message) from error
    return safetensors.numpy


def _strict(text: str) -> Any:
    """Read JSON that says nothing twice and has no number that is not finite."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"{', '.join(map(repr, twice))} twice")
        return found

    def number(word: str) -> float:
        found = float(word)
        if not math.isfinite(found):
            raise ValueError(f"a number that is not finite: {word}")
        return found

    return json.loads(text, object_pairs_hook=unique, parse_float=number, parse_constant=number)


def _check_header(header: Any) -> None:
    """Refuse what safetensors lets pass, or stumbles over."""
    for name, tensor in dict(header).items():
        if name != "__metadata__" and tensor["dtype"] not in _DTYPES:
            expected = ", ".join(_DTYPES)
            raise ValueError(f"{name}: expected one of {expected}, got {tensor['dtype']!r}")


def _replace(target: str, data: bytes) -> None:
    try:
        before = os.stat(target).st_mode
    except FileNotFoundError:
        before = None
    if before is not None and not stat.S_ISREG(before):
        with open(target, "wb") as file:
            file.write(data)
        return
    folder = os.path.dirname(target)
    made = os.path.join(folder, f".multihead-{secrets.token_hex(8)}.tmp")
    with open(made, "xb") as file:
        try:
            if before is not None:
                os.chmod(made, stat.S_IMODE(before))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(made, target)
        except BaseException:
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                os.unlink(made)
            raise
    if os.name == "posix":  # others do not open folders
        with contextlib.suppress(OSError):
            opened = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)
