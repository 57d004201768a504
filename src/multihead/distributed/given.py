"""What one rank gives to a call of sharded attention, checked and taken in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from multihead.arrays import Array, Element, Kind, Shape, borrow, dtype_name, read
from multihead.attention_inputs import check_shapes, element_given, keys_given
from multihead.checks import boolean, number, probability
from multihead.distributed.agreement import digest
from multihead.masks import fold, of_heads
from multihead.packed import Packing, unpack
from multihead.ragged import Ragged
from multihead.score_rules import Asked, cap_of, sides_of
from multihead.seeds import seed_from

_NAMES = ("query", "key", "value")
_VALUES = ("query.values", "key.values", "value.values")


class Options(NamedTuple):
    """What a caller says beside query, key and value, as `functional` has it; layers say more.

    `counter` is which of the calls that share a seed this one is; `returns` are the flags of
    log-sums and cache; `extra` is a key and a value more, (1, Hk, 1, D) and (1, Hk, 1, Dv) in the
    dtype computed in: see `Problem`.
    """

    attn_mask: Any = None
    dropout_p: Any = 0.0
    is_causal: Any = False
    scale: Any = None
    enable_gqa: Any = False
    window: Any = None
    query_offset: Any = 0
    key_lengths: Any = None
    softcap: Any = None
    alibi_slopes: Any = None
    sinks: Any = None
    seed: Any = None
    counter: int = 0
    returns: tuple[Any, Any] = (False, False)
    extra: tuple[Array, Array] | None = None

    @property
    def asked(self) -> Asked:
        """What there is for `score_rules`."""
        offset = self.query_offset
        first = type(offset) is int and offset == 0
        rules = (self.window, None if first else offset, self.key_lengths, self.softcap)
        return Asked(*rules, self.alibi_slopes, self.sinks)


class Drawn(NamedTuple):
    """A seed that rank 0 draws once all ranks have agreed on a call."""

    draw: Callable[[], int]


class Given(NamedTuple):
    """Query, key and value of this rank, taken in.

    Attributes
    ----------
    element : Element
    arrays : tuple of three ndarray
        (N, H, L, D), (N, Hk, S, D), (N, Hk, S, Dv) as the engine reads them; of packed sequences
        (total, H, D) and so on.
    kinds, shapes
        As the caller gave them.
    packing : Packing or None
        Where packed sequences begin on this rank.
    folded : callable
        Leading axes to (N, H).
    """

    element: Element
    arrays: tuple[Array, Array, Array]
    kinds: tuple[Kind, Kind, Kind]
    shapes: tuple[Shape, Shape, Shape]
    packing: Packing | None
    folded: Callable[[Shape], tuple[int, int, int, int]]

    @property
    def lengths(self) -> Array:
        """Queries and keys of this rank: (2, sequences); one of a dense batch."""
        if self.packing is not None:
            return np.stack(self.packing.lengths)
        q, k, _ = self.arrays
        return np.array([[q.shape[2]], [k.shape[2]]])

    @property
    def heads(self) -> tuple[int, int]:
        """H and Hk."""
        q, k, _ = self.arrays
        return q.shape[1], k.shape[1]

    @property
    def batch(self) -> int:
        """N."""
        return self.arrays[0].shape[0] if self.packing is None else len(self.packing.query) - 1


def take_in(query: Any, key: Any, value: Any, options: Options) -> Given:
    """Check and view this rank's part of the inputs, or raise."""
    enable_gqa, packing, names = boolean("enable_gqa", options.enable_gqa), None, _NAMES
    if any(isinstance(x, Ragged) for x in (query, key, value)):
        packing, (query, key, value) = unpack(query, key, value)
        names = _VALUES
    element = element_given(names[0], query)
    q, _, q_kind = read(names[0], query, element, "")
    k, k_kind = keys_given(names[1], key, element)
    v, v_kind = keys_given(names[2], value, element)
    shapes = (q.shape, k.shape, v.shape)
    folded = of_heads if enable_gqa or options.asked else fold
    if packing is not None:
        packing.scores(*shapes, enable_gqa)
    else:
        check_shapes(*shapes, enable_gqa)
        q, k, v = (x.reshape(folded(x.shape)) for x in (q, k, v))
    return Given(element, (q, k, v), (q_kind, k_kind, v_kind), shapes, packing, folded)


def checked(options: Options, given: Given) -> Options:
    """Return options whose numbers and flags are checked, or raise."""
    width = given.shapes[0][-1]
    scale = (width**-0.5 if width else 1.0) if options.scale is None else options.scale
    dropout = probability("dropout_p", options.dropout_p)
    sides_of(options.window)
    cap_of(options.softcap)
    seed = options.seed
    if not (seed is None or isinstance(seed, Drawn | np.random.Generator)):
        seed = seed_from(seed)
    for name, flag in zip(("return_lse", "return_cache"), options.returns, strict=True):
        boolean(name, flag)
    return options._replace(
        dropout_p=dropout,
        is_causal=boolean("is_causal", options.is_causal),
        scale=number("scale", scale),
        seed=seed,
    )


def signature(options: Options, given: Given, sharding: str) -> dict[str, Any]:
    """Return what every rank has to give alike, by argument."""
    q, k, v = given.arrays
    tokens = 0 if given.packing is not None else 2
    said: dict[str, Any] = {
        name: [*x.shape[:tokens], *x.shape[tokens + 1 :]]
        for name, x in zip(_NAMES, (q, k, v), strict=True)
    }
    said["dtype"] = [dtype_name(x, kind) for x, kind in zip((q, k, v), given.kinds, strict=True)]
    said["sequences"] = given.batch
    said["sharding"] = sharding
    said["attn_mask"] = None if options.attn_mask is None else "a mask"
    said["seed"] = _seed_told(options.seed)
    said["window"] = sides_of(options.window)
    for name in ("dropout_p", "is_causal", "scale", "softcap"):
        value = getattr(options, name)
        said[name] = None if value is None else float(value)
    for name in ("query_offset", "key_lengths", "alibi_slopes", "sinks"):
        said[name] = _told(name, getattr(options, name))
    return said


def _told(name: str, x: Any) -> Any:
    """Return a value that may be an array as JSON holds it."""
    if x is None or isinstance(x, int):
        return x
    if isinstance(x, str):
        return x[:40]
    if isinstance(x, list | tuple):
        return digest(np.asarray(x))
    array, kind = borrow(name, x)
    return [dtype_name(array, kind), digest(array)]


def _seed_told(seed: Any) -> Any:
    """Return a seed as JSON holds it; a generator by its state, from which nothing is drawn."""
    if isinstance(seed, Drawn):
        return "drawn"
    if isinstance(seed, np.random.Generator):
        return digest(np.frombuffer(repr(seed.bit_generator.state).encode(), np.uint8))
    return seed
