"""A warning for masks that say the opposite of what was meant."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np

from multihead.arrays import Array


class MaskWarning(UserWarning):
    """A mask hides everything from a query in every sequence, or adds zeros and ones to scores.

    Or a padding mask hides a whole sequence, and the first key of all others too. All of this is
    allowed, and mostly a mask of the opposite meaning. A layer warns once for each of its masks,
    and looks at the first few calls alone; `multihead.torch` does not look. Switch it off with
    ``warnings.simplefilter("ignore", multihead.MaskWarning)``.

    Examples
    --------
    >>> import warnings
    >>> import numpy as np
    >>> import multihead as mh
    >>> layer, x = mh.MultiheadAttention(8, 2), np.ones((3, 8), np.float32)
    >>> sees = np.tri(3, dtype=bool)
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = layer(x, x, x, attn_mask=sees)
    >>> print(caught[0].message)
    attn_mask: 1 of 3 queries see no key in any sequence; True means ignore (~attn_mask?)
    """


class MaskWatch:
    """Looks at the masks of the first `left` calls, and warns once for each argument.

    A look is a pass over L x S elements, which no later call has to pay for.
    """

    def __init__(self, true_hides: bool, left: int) -> None:
        self._true_hides = true_hides
        self._doubted: set[str] = set()
        self.left = left

    def look(
        self, masks: Mapping[str, Array], queries: int, all_hidden_is_fine: bool = False
    ) -> None:
        """Warn the caller's caller if a mask as the engine takes it seems to mean the opposite.

        Parameters
        ----------
        masks : mapping of str to array
            ``key_padding_mask``, (N, S) or (S,), and ``attn_mask``, (..., L or 1, S).
        queries : int
            L.
        all_hidden_is_fine : bool
            Whether queries see more keys than those of the masks.
        """
        for name, mask in masks.items():
            if mask.size and name not in self._doubted:
                try:
                    message = self._doubt(name, mask, queries, all_hidden_is_fine)
                except MemoryError:  # if the call has none either, it says so itself
                    continue
                if message:
                    warnings.warn(f"{name}: {message}", MaskWarning, stacklevel=3)
                    self._doubted.add(name)
        self.left -= 1

    def _doubt(self, name: str, mask: Array, queries: int, fine: bool) -> str:
        is_bool = mask.dtype == np.bool_
        if not is_bool and mask.min() == 0 and mask.max() == 1 and np.isin(mask, (0, 1)).all():
            keep = f"{name} == 0" if self._true_hides else f"{name} != 0"
            return f"zeros and ones are added to the scores; {keep} hides where it is 0"
        if fine:
            return ""
        if not is_bool:
            hidden = mask.max(-1) == -np.inf
        else:
            hidden = mask.all(-1) if self._true_hides else ~mask.any(-1)
        if name == "key_padding_mask":
            what = self._padding_doubt(mask, hidden)
        else:
            rows = np.broadcast_to(hidden.all(tuple(range(hidden.ndim - 1))), queries)
            count = int(rows.sum())
            what = f"{count} of {rows.size} queries see no key in any sequence" if count else ""
        if not what:
            return ""
        if not is_bool:
            return f"{what}; -inf hides"
        polarity = "ignore" if self._true_hides else "attend"
        return f"{what}; True means {polarity} (~{name}?)"

    def _padding_doubt(self, mask: Array, hidden: Array) -> str:
        """Say what is doubtful of a padding mask, of which so many sequences are all hidden."""
        if hidden.all():
            return "every key is hidden in every sequence"
        first = mask[..., 0]
        if not hidden.any() or not (first if mask.dtype == np.bool_ else first == -np.inf).all():
            return ""
        return (
            f"every key is hidden in {int(hidden.sum())} of {hidden.size} sequences, and the first "
            "in all"
        )
