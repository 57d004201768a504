"""What is measured: functions, dtypes, lengths and logits, and how often each is drawn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

BATCH, HEADS, HEAD_DIM = 1, 2, 64
EMBED_DIM = HEADS * HEAD_DIM

MODULE, FUNCTION = "module", "function"
FUNCTIONS = {
    MODULE: "MultiheadAttention",
    FUNCTION: "scaled_dot_product_attention",
}
# each function's output, and what it has gradients for
TENSORS = {
    MODULE: (
        "out",
        "query",
        "key",
        "value",
        "in_proj_weight",
        "in_proj_bias",
        "out_proj.weight",
        "out_proj.bias",
    ),
    FUNCTION: ("out", "query", "key", "value"),
}
DTYPES = ("float32", "float16", "bfloat16")

# short ones more often: their few entries would leave the error to chance
DRAWS = {16: 64, 128: 16, 1024: 4, 8192: 1, 16384: 1}
QUICK_DRAWS = {16: 8, 128: 2}
LOGITS = (1, 10, 100, 1000)


@dataclass(frozen=True)
class Case:
    """Self-made inputs of one size.

    Attributes
    ----------
    function : str
        One of `FUNCTIONS`.
    dtype : str
        What inputs and parameters are rounded to, and results come in.
    length : int
        Queries and keys.
    logits : int
        The standard deviation of the scaled scores.
    """

    function: str
    dtype: str
    length: int
    logits: int


def cases(lengths: Iterable[int]) -> list[Case]:
    """Return the cases of some lengths, in the order of the page.

    Examples
    --------
    >>> made = cases([16])
    >>> len(made), made[0]
    (24, Case(function='module', dtype='float32', length=16, logits=1))
    """
    return [Case(*each) for each in product(FUNCTIONS, DTYPES, lengths, LOGITS)]
