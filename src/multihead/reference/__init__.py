"""Multi-head attention in plain float64 NumPy, forward and backward, written to be read.

This is the oracle that the tests hold the native engine to. Nothing here is fast: the scores of
every query against every key stand in memory. Read `layer.py` first: `forward` runs six numbered
passes, `backward` runs the same passes in reverse. `core.py` holds the attention of the heads,
`dropout.py` the random function that decides what dropout keeps. Arrays are batch first: query
(N, L, E), key (N, S, kdim), value (N, S, vdim).

The maths is that of Vaswani et al., "Attention Is All You Need" (2017).
"""

from __future__ import annotations

from multihead.reference.core import (
    AttentionGradients,
    AttentionResult,
    Rules,
    attention,
    attention_backward,
)
from multihead.reference.dropout import dropout_mask
from multihead.reference.layer import Options, Result, backward, forward

__all__ = [
    "AttentionGradients",
    "AttentionResult",
    "Options",
    "Result",
    "Rules",
    "attention",
    "attention_backward",
    "backward",
    "dropout_mask",
    "forward",
]
