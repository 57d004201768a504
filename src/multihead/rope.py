"""Rotary positions: queries and keys turned by the angles of their positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from multihead.arrays import Array
from multihead.checks import integer, number, wrong, wrong_type
from multihead.rope_scaling import kind_of, regime, turns

_LAYOUTS = ("half", "interleaved")
_STEP = 64  # positions that a table grows by; the engine reads that many at once


class Angles(NamedTuple):
    """Cosines and sines, (pairs, positions), from position 0 on."""

    cosine: Array
    sine: Array


class Rope:
    """Rotary positions of Su et al., "RoFormer" (2021).

    A head's features are taken in pairs, and pair i of the token at position p is turned by
    ``p * base ** (-2 i / dims)``, so that the product of a query and a key depends on the distance
    between them.

    Parameters
    ----------
    base : float, default 10000.0
        Of the angles: `rope_theta` of a model's configuration.
    dims : int, optional
        How many of a head's features are turned, the first ones; all by default. Even.
    layout : {"half", "interleaved"}, default "half"
        Feature i is paired with feature ``i + dims / 2``, as in Llama and Hugging Face's models, or
        2 i with 2 i + 1, as in GPT-J.
    scaling : mapping, optional
        What Hugging Face's configurations hold as `rope_parameters` (`rope_scaling`): its
        `rope_type` is default, linear, dynamic, yarn, llama3 or longrope, with the numbers that
        belong to it. `original_max_position_embeddings` (or `max_position_embeddings`) must be in
        it where the kind needs it. A `rope_theta` in it stands for `base`.

    Raises
    ------
    ValueError, TypeError
        If an argument is another one or a number is missing in `scaling`.

    Notes
    -----
    Angles are products in float32, as in the models that were trained with them; their cosines and
    sines are rounded to what a layer computes in. Tables of them are kept and grow as needed.

    References
    ----------
    https://arxiv.org/abs/2104.09864

    Examples
    --------
    >>> import numpy as np
    >>> import multihead as mh
    >>> layer = mh.MultiheadAttention(16, 2, rope=mh.Rope(), batch_first=True, seed=0)
    >>> x = np.ones((1, 4, 16), np.float32)
    >>> layer(x, x, x, is_causal=True)[0].shape
    (1, 4, 16)
    """

    def __init__(
        self,
        base: float = 10000.0,
        dims: int | None = None,
        layout: Literal["half", "interleaved"] = "half",
        scaling: Mapping[str, Any] | None = None,
    ) -> None:
        kind_of(scaling)
        if scaling is not None and scaling.get("rope_theta") is not None:
            base = scaling["rope_theta"]
        self._base = number("base", base)
        if not self._base > 0:
            raise wrong("base", "a number above 0", base)
        self._dims = None if dims is None else integer("dims", dims, 2)
        if self._dims is not None and self._dims % 2:
            raise wrong("dims", "an even number", dims)
        if layout not in _LAYOUTS:
            raise wrong("layout", " or ".join(map(repr, _LAYOUTS)), repr(layout))
        self._layout = layout
        self._scaling = None if scaling is None else dict(scaling)
        self._given: Angles | None = None
        self._tables: dict[tuple[int, str, int], Angles] = {}
        if self._dims is not None:
            self._check(self._dims)

    @classmethod
    def from_table(
        cls, cosine: Any, sine: Any, layout: Literal["half", "interleaved"] = "half"
    ) -> Rope:
        """Take angles of one's own.

        Parameters
        ----------
        cosine, sine : array_like (positions, pairs) or (positions, 2 * pairs)
            From position 0 on. In the second form, which is Hugging Face's, both features of a pair
            have the same angle.
        layout : {"half", "interleaved"}, default "half"

        Raises
        ------
        ValueError
            If shapes differ, or both features of a pair do.

        Examples
        --------
        >>> import numpy as np
        >>> import multihead as mh
        >>> angles = np.outer(np.arange(6), [1.0, 0.1])
        >>> mh.Rope.from_table(np.cos(angles), np.sin(angles)).pairs(head_dim=8)
        2
        """
        c, s = np.asarray(cosine, np.float64), np.asarray(sine, np.float64)
        if c.ndim != 2 or c.shape != s.shape or c.shape[1] < 1:
            raise wrong("cosine, sine", "two arrays (positions, pairs)", (c.shape, s.shape))
        rope = cls(layout=layout)
        half = c.shape[1] // 2
        if c.shape[1] % 2 == 0:
            first, second = (
                (slice(half), slice(half, None))
                if layout == "half"
                else (slice(0, None, 2), slice(1, None, 2))
            )
            if np.array_equal(c[:, first], c[:, second]) and np.array_equal(
                s[:, first], s[:, second]
            ):
                c, s = c[:, first], s[:, first]
        rope._given = Angles(np.ascontiguousarray(c.T), np.ascontiguousarray(s.T))
        return rope

    @property
    def base(self) -> float:
        """Of the angles."""
        return self._base

    @property
    def scaling(self) -> dict[str, Any] | None:
        """How angles are scaled for longer texts."""
        return None if self._scaling is None else dict(self._scaling)

    @property
    def layout(self) -> str:
        """Which features form a pair."""
        return self._layout

    @property
    def positions(self) -> int | None:
        """How many positions there are angles for; None: any number."""
        return None if self._given is None else int(self._given.cosine.shape[1])

    def pairs(self, head_dim: int) -> int:
        """Return how many pairs of a head's features are turned, or raise.

        Parameters
        ----------
        head_dim : int

        Raises
        ------
        ValueError
            If the head has fewer features, or an odd number where all are to be turned.
        """
        if self._given is not None:
            pairs = int(self._given.cosine.shape[0])
        elif self._dims is not None:
            pairs = self._dims // 2
        else:
            part = 1.0 if self._scaling is None else self._scaling.get("partial_rotary_factor", 1.0)
            pairs = int(head_dim * part) // 2
            if int(head_dim * part) % 2 or pairs == 0:
                raise wrong("rope", "an even head_dim, or dims=", f"head_dim={head_dim}")
        if 2 * pairs > head_dim:
            raise wrong("rope", f"at most head_dim = {head_dim} features to turn", 2 * pairs)
        return pairs

    def _check(self, dims: int) -> None:
        """Say now what a scaling lacks, for short texts and for long ones."""
        for length in (1, 2**40):
            turns(self._base, dims, length, self._scaling)

    def fit(self, head_dim: int) -> None:
        """Raise unless a head's features can be turned, at any position that there are angles of.

        Parameters
        ----------
        head_dim : int

        Raises
        ------
        ValueError, TypeError
            As `pairs`, and if `scaling` lacks a number.
        """
        pairs = self.pairs(head_dim)
        if self._given is None:
            self._check(2 * pairs)

    def angles(self, head_dim: int, length: int, dtype: Any) -> Angles:
        """Return cosines and sines of positions 0 to `length` - 1 and perhaps more.

        Parameters
        ----------
        head_dim : int
        length : int
            Of the text: what scalings that depend on it go by.
        dtype : float32 or float64

        Returns
        -------
        Angles
            `cosine` and `sine`, (pairs, positions).

        Raises
        ------
        ValueError
            If the rope's own table is shorter.
        """
        pairs, dtype = self.pairs(head_dim), np.dtype(dtype)
        own = self._given is not None
        key = pairs, dtype.name, 0 if own else regime(length, self._scaling)
        found = self._tables.get(key)
        if found is not None and found.cosine.shape[1] >= length + (0 if own else _STEP):
            return found
        if self._given is not None:
            if self._given.cosine.shape[1] < length:
                raise wrong("rope", f"angles of {length} positions", self._given.cosine.shape[1])
            made = Angles(*(x.astype(dtype) for x in self._given))
        else:
            made = self._made(pairs, length, dtype)
        self._tables = {k: v for k, v in self._tables.items() if k[2] in (0, 1)} | {key: made}
        return made

    def _made(self, pairs: int, length: int, dtype: np.dtype[Any]) -> Angles:
        room = max(2 * length, 256)
        frequencies, factor = turns(self._base, 2 * pairs, length, self._scaling)
        positions = np.arange(-(-room // _STEP) * _STEP + _STEP, dtype=np.float32)
        angles = np.outer(frequencies, positions).astype(np.float64)
        return Angles(*((f(angles) * factor).astype(dtype) for f in (np.cos, np.sin)))

    def to_dict(self) -> dict[str, Any]:
        """Return the constructor's arguments; of a table, what `from_table` takes as lists."""
        if self._given is not None:
            cosine, sine = (x.T.tolist() for x in self._given)
            return {"cosine": cosine, "sine": sine, "layout": self._layout}
        return {
            "base": self._base,
            "dims": self._dims,
            "layout": self._layout,
            "scaling": self._scaling,
        }

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Rope:
        """Make one from what `to_dict` returned."""
        return cls.from_table(**options) if "cosine" in options else cls(**options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rope) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self._base, self._dims, self._layout, self.positions))

    def __getstate__(self) -> dict[str, Any]:
        return self.to_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(Rope.from_dict(state).__dict__)

    def __repr__(self) -> str:
        if self._given is not None:
            pairs, positions = self._given.cosine.shape
            return f"Rope.from_table({positions} positions, {pairs} pairs, {self._layout!r})"
        defaults = {"base": 10000.0, "dims": None, "layout": "half", "scaling": None}
        shown = [f"{k}={v!r}" for k, v in self.to_dict().items() if v != defaults[k]]
        return f"Rope({', '.join(shown)})"


def rope_of(value: Any, head_dim: int) -> Rope | None:
    """Take in a layer's rope: a `Rope`, a table (cos, sin) or None."""
    if value is None:
        return None
    if isinstance(value, tuple | list) and len(value) == 2:
        value = Rope.from_table(*value)
    if not isinstance(value, Rope):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        got = type(value).__name__ + f" (Rope(base={value}))" * number
        raise wrong_type("rope", "a Rope, a table (cos, sin) or None", got)
    value.fit(head_dim)
    return value
