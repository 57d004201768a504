"""What a call must be: right, with the bits of the other kernel sets; or a clean error."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

import multihead as mh
from fuzz.draws import Draws
from multihead import _native
from tolerance import CANCELLED, error, tolerance

CLEAN: tuple[type[BaseException], ...] = (TypeError, ValueError, MemoryError)
# some of millions of draws are further off than the tests' thousands; what is wrong is by far
FACTOR = 16


class Found(Exception):  # noqa: N818
    """Something that must not be."""


def expect(holds: Any, what: str) -> None:
    """Raise unless something holds."""
    if not holds:
        raise Found(what)


# Memory that a call must leave alone


def _root(x: Any) -> Any:
    """The array that owns the memory of a view, or what is nearest to it."""
    if isinstance(x, np.ndarray):
        while isinstance(x.base, np.ndarray):
            x = x.base
        return x
    return x


def _bytes(x: Any) -> bytes:
    if isinstance(x, np.ndarray):
        if x.dtype.hasobject:
            return repr(x.tolist()).encode()
        return x.tobytes()
    if type(x).__module__.startswith("torch"):
        import torch

        if x.layout != torch.strided or x.device.type != "cpu":
            return b""
        return bytes(x.detach().untyped_storage().tolist()) if x.numel() < 64 else _torch_bytes(x)
    return repr(x).encode()


def _torch_bytes(x: Any) -> bytes:
    import torch

    flat = torch.empty(0, dtype=torch.uint8).set_(x.detach().untyped_storage())
    return flat.numpy().tobytes()


class Kept:
    """The bytes of some arrays, gaps between their elements included."""

    def __init__(self, arrays: Iterable[Any]) -> None:
        roots = (_root(x) for x in arrays if x is not None)
        self._arrays = [x for x in roots if getattr(x, "nbytes", 0) < 1 << 24]
        self._before = [_bytes(x) for x in self._arrays]

    def expect(self, when: str) -> None:
        """Raise unless they are as they were."""
        for i, (x, before) in enumerate(zip(self._arrays, self._before, strict=True)):
            expect(_bytes(x) == before, f"{when}: array {i}, {getattr(x, 'shape', '')}, changed")


# Calls


def refused(
    call: Callable[[], Any], keep: Iterable[Any], clean: tuple[type[BaseException], ...] = CLEAN
) -> BaseException | None:
    """Run what may be wrong: return the error, a clean one that changed nothing, or None."""
    kept = Kept(keep)
    try:
        call()
    except clean as why:
        expect(
            str(why).strip() or isinstance(why, MemoryError), f"{type(why).__name__} says nothing"
        )
        kept.expect(f"after {type(why).__name__}: {why}")
        return why
    kept.expect("after a call that was taken")
    return None


def must_refuse(
    call: Callable[[], Any],
    keep: Iterable[Any],
    what: str,
    clean: tuple[type[BaseException], ...] = CLEAN,
) -> None:
    """Run what is wrong."""
    if refused(call, keep, clean) is None:
        raise Found(f"{what} was taken")


def near(
    actual: Any, expected: Any, kind: str, dtype: Any, name: str, *, scale: float = 0.0
) -> None:
    """Hold an array against the oracle's."""
    expect(actual is not None, f"{name}: nothing came")
    bound = FACTOR * tolerance(kind, dtype)
    try:
        off = error(np.asarray(actual), expected, name, scale=scale)
    except AssertionError as why:
        raise Found(str(why)) from None
    expect(off <= bound, f"{name}: {off:.3g} of the largest entry, bound {bound:.3g}")


def all_near(
    actual: dict[str, Any], expected: dict[str, Any], kind: str, dtype: Any, sizes: Any = None
) -> None:
    """Hold gradients against the oracle's; what cancels is measured against the largest."""
    expect(set(actual) == set(expected), f"{sorted(actual)}, not {sorted(expected)}")
    finite = [
        np.abs(x[np.isfinite(x)]).max(initial=0.0) for x in map(np.asarray, expected.values())
    ]
    largest = float(max(finite, default=0.0))
    for name, x in expected.items():
        scale = CANCELLED * max(largest, (sizes or {}).get(name, 0.0))
        near(actual[name], x, kind, dtype, name, scale=scale)


# Kernel sets

SETS = tuple(_native.available_isas())
_PAIRS = ("amx", "avx512_bf16", "neon_bf16")


def family(isa: str, bfloat16: bool) -> str:
    """Name the sets that have the same bits."""
    return isa if isa == "baseline" or (bfloat16 and isa in _PAIRS) else "FMA"


def choose(draws: Draws) -> str:
    """Choose the kernel set, the threads and whether they share little work, for one input."""
    isa = draws.choice(SETS)
    _native.use_isa(isa)
    mh.set_num_threads(1 + draws.flip())
    _native.set_little(0 if draws.flip() else 1 << 20)
    return isa


def same_bits(draws: Draws, run: Callable[[], list[Any]], bfloat16: bool) -> None:
    """Hold a call's bits against those on another set, with other threads, now and then."""
    here = _native.isa()
    there = draws.choice([x for x in SETS if family(x, bfloat16) == family(here, bfloat16)])
    first = bits(run())
    _native.use_isa(there)
    mh.set_num_threads(1 + draws.flip())
    _native.set_little(0 if draws.flip() else 1 << 20)
    expect(bits(run()) == first, f"other bits on {here} and {there}")


def bits(results: Iterable[Any]) -> list[bytes]:
    """The bits of results; every NaN is the same one."""
    found = []
    for x in results:
        if x is None:
            continue
        array = np.array(x, order="C")
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            array[array != array] = np.nan
        found.append(array.tobytes())
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without warnings, of NumPy's arithmetic too."""
    import warnings

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


def show(*words: Any) -> None:
    """Say what an input is, where one is replayed."""
    if SHOWS:
        print(*words, file=sys.stderr, flush=True)


SHOWS = False
