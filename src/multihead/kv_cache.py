"""Keys and values of the tokens so far, so that a step attends to all of them and computes one."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numpy as np

from multihead.arguments import CachedKeys
from multihead.arrays import Array, Element, element_of, storage_dtype
from multihead.checks import dims, integer, wrong, wrong_type
from multihead.locks import give_lock
from multihead.memory import new_zeros

LONGEST = 2**40  # tokens of a text: what the engine tells apart

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _alone(method: _Method) -> _Method:
    """Let a method run while nothing else uses the cache, or raise."""

    @functools.wraps(method)
    def run(self: KVCache, *args: Any, **kwargs: Any) -> Any:
        with self.alone():
            return method(self, *args, **kwargs)

    return cast(_Method, run)


class KVCache:
    """A cache of keys and values, projected and turned, to which a layer's calls in eval append.

    Memory is taken once. A call writes the rows of its new tokens after those of each sequence,
    which may have different lengths, and reads the others where they are. A cache serves one call
    at a time; another thread's call meanwhile is a ValueError.

    Parameters
    ----------
    batch : int
        N, the number of sequences.
    num_kv_heads : int
        Hk.
    capacity : int
        Rows of each sequence.
    head_dim : int
        D, the width of a key.
    value_dim : int, optional
        Dv, the width of a value; D by default.
    dtype : dtype or str, default "float32"
        What is stored: float16 and bfloat16 under a float32 layer halve what a step reads.
    window : int, optional
        How many keys before its own place a query sees. A sequence may then be longer than
        `capacity`: when it is full, rows that nothing sees any more make room, and a call of many
        tokens is taken in parts. Twice the window is a good capacity, one row more the least.

    Attributes
    ----------
    keys, values : ndarray
        (N, Hk, capacity, D) and (N, Hk, capacity, Dv).
    lengths : ndarray of int64 (N,)
        How many tokens each sequence has; may be set, after rows were written by hand.

    Raises
    ------
    ValueError, TypeError
        If a size is not positive or `dtype` is another one.

    See Also
    --------
    MultiheadAttention.new_kv_cache : One that fits a layer.

    Examples
    --------
    >>> import numpy as np
    >>> import multihead as mh
    >>> layer = mh.MultiheadAttention(8, 2, rope=mh.Rope(), batch_first=True, seed=0).eval()
    >>> cache = layer.new_kv_cache(batch=1, capacity=16)
    >>> text = np.random.default_rng(0).normal(size=(1, 5, 8)).astype(np.float32)
    >>> whole, _ = layer(text, text, text, is_causal=True)
    >>> for i in range(5):
    ...     x = text[:, i : i + 1]
    ...     out, _ = layer(x, x, x, is_causal=True, kv_cache=cache)
    >>> cache.lengths.tolist(), np.allclose(out[:, 0], whole[:, 4], atol=1e-6)
    ([5], True)
    """

    _lock: threading.Lock

    def __init__(
        self,
        batch: int,
        num_kv_heads: int,
        capacity: int,
        head_dim: int,
        value_dim: int | None = None,
        dtype: Any = None,
        *,
        window: int | None = None,
    ) -> None:
        sizes = {"batch": batch, "num_kv_heads": num_kv_heads, "capacity": capacity}
        sizes |= {"head_dim": head_dim, "value_dim": head_dim if value_dim is None else value_dim}
        n, heads, rows, d, dv = (integer(name, size, 1) for name, size in sizes.items())
        self._window = None if window is None else integer("window", window, 0)
        if self._window is not None and rows < self._window + 1:
            raise wrong("capacity", f"window + 1 = {self._window + 1} rows at least", rows)
        element = element_of(dtype)
        stored = storage_dtype(element)
        keys = new_zeros("keys of the cache", (n, heads, rows, d), stored)
        values = new_zeros("values of the cache", (n, heads, rows, dv), stored)
        self._adopt(element, keys, values, np.zeros(n, np.int64), np.zeros(n, np.int64))
        give_lock(self, threading.Lock)

    def alone(self) -> threading.Lock:
        """Return the lock that a call holds while it uses the cache, or raise if one does."""
        if self._lock.locked():
            raise wrong(
                "kv_cache", "a cache of one call at a time", "one that another call is using"
            )
        return self._lock

    def _adopt(self, element: Element, keys: Array, values: Array, rows: Array, at: Array) -> None:
        self._element = element
        self._keys, self._values = keys, values
        self._rows, self._lengths = rows, at
        stored = element.stored
        self._engine = CachedKeys(keys.view(stored), values.view(stored), rows, at)

    @property
    def keys(self) -> Array:
        """Keys, (N, Hk, capacity, D)."""
        return self._keys

    @property
    def values(self) -> Array:
        """Values, (N, Hk, capacity, Dv)."""
        return self._values

    @property
    def dtype(self) -> str:
        """Name of what is stored."""
        return self._element.name

    @property
    def batch(self) -> int:
        """How many sequences there are."""
        return len(self._rows)

    @property
    def capacity(self) -> int:
        """Rows of each sequence."""
        return int(self._keys.shape[2])

    @property
    def window(self) -> int | None:
        """How many keys before its own place a query sees; None: all."""
        return self._window

    @property
    def lengths(self) -> Array:
        """How many tokens each sequence has, (N,); to set them says that rows are filled so far."""
        found: Array = self._lengths.copy()
        return found

    @lengths.setter
    @_alone
    def lengths(self, lengths: Any) -> None:
        found = self._each("lengths", lengths, 0, self.capacity)
        self._rows[...] = found
        self._lengths[...] = found

    @_alone
    def truncate(self, lengths: Any) -> None:
        """Forget the tokens from there on: of padding behind a prompt, or of a rejected draft.

        Parameters
        ----------
        lengths : int or array_like of int (N,)
            How many tokens to keep.

        Raises
        ------
        ValueError
            If a sequence is shorter, or rows that the next query sees are no longer there: with a
            window, when what made room went further than the tokens to forget.
        """
        found = self._each("lengths", lengths, 0, None)
        dropped = self._lengths - self._rows
        if (found > self._lengths).any():
            raise wrong("lengths", f"at most {self._lengths.tolist()}", found.tolist())
        # the next query sees a window of keys before its own place
        least = np.where(dropped > 0, np.minimum(dropped + (self._window or 0), self._lengths), 0)
        if (found < least).any():
            expected = f"at least {least.tolist()}, as earlier rows are gone"
            raise wrong("lengths", expected, found.tolist())
        self._rows[...] = found - dropped
        self._lengths[...] = found

    @_alone
    def reorder(self, indices: Any) -> None:
        """Let sequence n go on where sequence ``indices[n]`` is: the beams of a search.

        Parameters
        ----------
        indices : array_like of int (N,)

        Raises
        ------
        ValueError
            If an index is not from 0 to N - 1.
        """
        found = self._each("indices", indices, 0, self.batch - 1)
        used = int(self._rows.max(initial=0))
        for memory in (self._keys, self._values):
            memory[:, :, :used] = memory[found, :, :used]
        self._rows[...] = self._rows[found]
        self._lengths[...] = self._lengths[found]

    @_alone
    def reset(self) -> None:
        """Forget all tokens."""
        self._rows[...] = 0
        self._lengths[...] = 0

    @_alone
    def state_dict(self) -> dict[str, Array]:
        """Return copies of the rows in use, and how many there are.

        Returns
        -------
        dict of str to ndarray
            `keys`, `values`, `lengths` and `rows`; ``multihead.checkpoint.save_cache`` writes them.
        """
        used = int(self._rows.max(initial=0))
        kept = {"keys": self._keys[:, :, :used].copy(), "values": self._values[:, :, :used].copy()}
        return kept | {"lengths": self._lengths.copy(), "rows": self._rows.copy()}

    @_alone
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take in what `state_dict` returned, of a cache with the same sizes but for `capacity`.

        Raises
        ------
        ValueError, TypeError
            If something is missing or does not fit. Nothing is changed then.
        """
        names = ("keys", "values", "lengths", "rows")
        if not isinstance(state, Mapping):
            raise wrong_type("state", "a mapping of names to arrays", type(state).__name__)
        if set(state) != set(names):
            raise wrong("state", " and ".join(names), sorted(map(str, state)))
        keys, values, lengths, rows = (np.asarray(state[name]) for name in names)
        for name, x, own in (("keys", keys, self._keys), ("values", values, self._values)):
            n, heads, _, width = own.shape
            fits = x.ndim == 4 and (*x.shape[:2], x.shape[3]) == (n, heads, width)
            if not fits or x.shape[2] > self.capacity:
                raise wrong(name, f"({n}, {heads}, up to {self.capacity}, {width})", x.shape)
            bits = self._element.name == "bfloat16" and x.dtype.name in ("uint16", "bfloat16")
            if x.dtype != own.dtype and not bits:
                raise wrong_type(name, own.dtype.name, x.dtype.name)
        used = min(keys.shape[2], values.shape[2])
        rows = self._each("rows", rows, 0, used)
        lengths = self._each("lengths", lengths, 0, LONGEST)
        if self._window is None and (lengths != rows).any():
            raise wrong("lengths", f"{rows.tolist()}, as there is no window", lengths.tolist())
        if (lengths < rows).any():
            raise wrong("lengths", f"at least {rows.tolist()}", lengths.tolist())
        copies = [
            x.copy() if np.may_share_memory(x, own) else x
            for x, own in ((keys, self._values), (values, self._keys))
        ]
        for own, x in zip((self._keys, self._values), copies, strict=True):
            own[:, :, : x.shape[2]] = x.view(own.dtype)
        self._rows[...], self._lengths[...] = rows, lengths

    def options(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        n, heads, capacity, d = self._keys.shape
        return {
            "batch": n,
            "num_kv_heads": heads,
            "capacity": capacity,
            "head_dim": d,
            "value_dim": self._values.shape[3],
            "dtype": self.dtype,
            "window": self._window,
        }

    def _each(self, name: str, given: Any, low: int, high: int | None) -> Array:
        """Take in an integer for each sequence."""
        found = np.asarray(given)
        if found.dtype.kind not in "iu" and found.size:
            raise wrong_type(name, "integers", found.dtype.name)
        if found.ndim == 0:
            found = np.broadcast_to(found, (self.batch,))
        if found.shape != (self.batch,):
            raise wrong(name, dims(self.batch), found.shape)
        if found.size and (found.min() < low or (high is not None and found.max() > high)):
            limits = f"integers from {low}" + ("" if high is None else f" to {high}")
            raise wrong(name, limits, found.tolist())
        each: Array = found.astype(np.int64)
        return each

    def parts(self, tokens: int, whole: bool) -> list[slice]:
        """Cut new tokens into parts that each have room; `whole`: into one, or raise."""
        if (self._lengths > LONGEST - tokens).any():
            expected = f"texts of 2**40 tokens at most, {tokens} more included (reset)"
            raise wrong("kv_cache", expected, f"lengths {self._lengths.tolist()}")
        most = self.capacity if self._window is None else self.capacity - self._window
        fits = int(self._rows.max(initial=0)) + tokens <= self.capacity
        if fits or tokens <= most or self._window is None:
            return [slice(0, tokens)]
        if whole:
            expected = f"no weights or masks with more than {most} tokens beside a window"
            raise wrong("kv_cache", expected, tokens)
        return [slice(a, min(a + most, tokens)) for a in range(0, tokens, most)]

    def rows_with(self, tokens: int) -> Array:
        """Return how many rows each sequence has with so many more, or raise."""
        capacity = self.capacity
        rows: Array = self._rows + tokens
        over = rows > capacity
        if over.any():
            kept = self._rows if self._window is None else np.minimum(self._rows, self._window)
            if (kept + tokens > capacity).any():
                more = f"room for {tokens} more of {capacity} rows (truncate, or a larger capacity)"
                raise wrong("kv_cache", more, f"lengths {self._lengths.tolist()}")
            rows[over] = kept[over] + tokens
        return rows

    def room_for(self, tokens: int) -> CachedKeys:
        """Make room for so many rows more, and return what the engine takes, or raise."""
        kept = self.rows_with(tokens) - tokens
        for n in np.flatnonzero(kept < self._rows):
            first, last = self._rows[n] - kept[n], self._rows[n]
            for memory in (self._keys, self._values):
                memory[n, :, : kept[n]] = memory[n, :, first:last]
        self._rows[...] = kept
        return self._engine

    def advance(self, tokens: int) -> None:
        """Count rows that the engine has written."""
        self._rows += tokens
        self._lengths += tokens

    def __getstate__(self) -> dict[str, Any]:
        return {"options": self.options(), **self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = dict(state)
        self.__dict__.update(KVCache(**kept.pop("options")).__dict__)
        give_lock(self, threading.Lock)
        self.load_state_dict(kept)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return int(self._keys.nbytes + self._values.nbytes)

    def __repr__(self) -> str:
        options = {k: v for k, v in self.options().items() if v is not None}
        shown = ", ".join(f"{name}={x!r}" for name, x in options.items())
        return f"KVCache({shown}): {math.ceil(self.nbytes / 1024)} KiB"
