"""What a call of the layer says beside its tensors."""

from __future__ import annotations

from typing import NamedTuple


class Options(NamedTuple):
    """Options of one call.

    Attributes
    ----------
    num_heads : int
    zero_row : bool
        A key and a value of zeros more.
    causal : bool
    dropout : tuple
        Probability, seed and counter.
    average : bool or None
        Weights averaged over the heads, or for each; None: no weights.
    tokens_first : bool
        Inputs are (tokens, N, features).
    """

    num_heads: int
    zero_row: bool
    causal: bool
    dropout: tuple[float, int, int]
    average: bool | None
    tokens_first: bool
