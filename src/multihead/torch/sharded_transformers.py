"""Attention and masks of a Hugging Face model whose sequences are shared by ranks."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any, NamedTuple

import torch
from transformers import masking_utils

from multihead.checks import wrong
from multihead.distributed import ContextParallel
from multihead.torch.context_parallel import context_parallel_attention

ATTRIBUTE = "_multihead_parallel"
LACKING = (
    "position_bias",
    "head_mask",
    "indices",
    "block_indices",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
)


class Sight(NamedTuple):
    """What queries see, padding aside: those before them alone, keys so far off (None: all)."""

    causal: bool
    side: int | None


@dataclass
class Scope:
    """What a model's forward knows of the whole.

    Attributes
    ----------
    owner : torch.nn.Module
    tokens : tuple of int
        N and L_r.
    padding : Tensor or None
        (N, 1, 1, S), true = attend.
    sights : set of Sight
        Of the masks that the model asked for.
    """

    owner: Any
    tokens: tuple[int, int]
    padding: torch.Tensor | None
    sights: set[Sight] = field(default_factory=set)


class _Scopes(threading.local):
    """Forwards under way in this thread, the outermost first."""

    def __init__(self) -> None:
        self.stack: list[Scope] = []


SCOPES = _Scopes()


def current() -> Scope | None:
    """Return the scope of the forward that this thread is in, if any is sharded."""
    return SCOPES.stack[-1] if SCOPES.stack else None


def sharded_mask(scope: Scope, asked: dict[str, Any]) -> torch.Tensor | None:
    """Return the padding of all ranks; the rest is left to the engine, or raise."""
    given = asked.get("attention_mask")
    if given is not None and tuple(given.shape) != scope.tokens:
        raise wrong("attention_mask", f"{scope.tokens} of this rank's tokens", tuple(given.shape))
    function = asked.get("mask_function", masking_utils.causal_mask_function)
    window = asked.get("local_size")
    for made, sight in _known(window):
        if _same(made, function):
            scope.sights.add(sight)
            return scope.padding
    expected = "a causal or bidirectional mask, or one of a sliding window, of a model over ranks"
    raise wrong("mask_function", expected, getattr(function, "__qualname__", function))


def _known(window: int | None) -> list[tuple[Any, Sight]]:
    known: list[tuple[Any, Sight]] = [
        (masking_utils.causal_mask_function, Sight(True, None)),
        (masking_utils.bidirectional_mask_function, Sight(False, None)),
    ]
    if isinstance(window, int):
        of_causal = masking_utils.sliding_window_causal_mask_function(window)
        known.append((of_causal, Sight(True, window - 1)))
        of_both = getattr(masking_utils, "sliding_window_bidirectional_mask_function", None)
        if of_both is not None:
            known.append((of_both(window), Sight(False, window)))
    return known


def _same(a: Any, b: Any) -> bool:
    """Whether two functions do the same: of one code, and of closures alike."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if not (isinstance(a, FunctionType) and isinstance(b, FunctionType)):
        return type(a) is type(b) and isinstance(a, int) and a == b
    if a.__code__ is not b.__code__:
        return False
    cells = [tuple(cell.cell_contents for cell in f.__closure__ or ()) for f in (a, b)]
    return _same(*cells)


def attend_over_ranks(
    module: torch.nn.Module,
    parallel: ContextParallel,
    inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    mask: torch.Tensor | None,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attend as transformers' models ask; heads before tokens, and tokens first in the result."""
    for name in LACKING:
        if options.get(name) is not None:
            raise wrong(
                name, "None: a model over ranks has none of it", type(options[name]).__name__
            )
    if mask is not None and (mask.dim() != 4 or mask.shape[1:3] != (1, 1)):
        expected = "padding (N, 1, 1, S) of all ranks: a model over ranks makes no other mask"
        raise wrong("attention_mask", expected, tuple(mask.shape))
    query, key, value = inputs
    causal = options["is_causal"]
    if causal is None:
        causal = getattr(module, "is_causal", True)
    window = options.get("sliding_window")
    side = window - 1 if isinstance(window, int) and window > 0 else None
    sight, scope = Sight(bool(causal), side), current()
    if scope is not None and scope.sights and sight not in scope.sights:
        expected = f"attention as the masks of the model say, {scope.sights}"
        raise wrong(type(module).__name__, expected, sight)
    sinks = next((options[x] for x in ("s_aux", "sinks") if options.get(x) is not None), None)
    out: torch.Tensor = context_parallel_attention(
        query,
        key,
        value,
        mask,
        options["dropout"],
        sight.causal,
        scale=options["scaling"],
        enable_gqa=key.shape[1] != query.shape[1],
        parallel=parallel,
        window=None if side is None else (side, side),
        softcap=options.get("softcap"),
        sinks=sinks,
    )
    return out.transpose(1, 2).contiguous()
