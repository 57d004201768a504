"""Names that people write for ours: what an error suggests."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_MEANT = {
    "q": "query",
    "k": "key",
    "v": "value",
    "x": "query",
    "mask": "attn_mask",
    "attention_mask": "attn_mask",
    "src_mask": "attn_mask",
    "src_key_padding_mask": "key_padding_mask",
    "padding_mask": "key_padding_mask",
    "key_mask": "key_padding_mask",
    "causal": "is_causal",
    "return_weights": "need_weights",
    "output_attentions": "need_weights",
    "p": "dropout",
    "dropout": "dropout_p",
    "key_dim": "kdim",
    "value_dim": "vdim",
    "d_model": "embed_dim",
    "hidden_size": "embed_dim",
    "heads": "num_heads",
    "nhead": "num_heads",
    "num_attention_heads": "num_heads",
    "use_bias": "bias",
    "num_key_value_heads": "num_kv_heads",
    "num_heads_kv": "num_kv_heads",
    "n_head_kv": "num_kv_heads",
    "num_groups": "num_kv_heads",
    "rotary": "rope",
    "rotary_emb": "rope",
    "rope_theta": "rope",
    "rope_scaling": "rope",
    "past_key_values": "kv_cache",
    "past_key_value": "kv_cache",
    "layer_past": "kv_cache",
    "sliding_window": "window",
    "window_size": "window",
    "s_aux": "sinks",
    "logits_soft_cap": "softcap",
    "seqused_k": "key_lengths",
    "nonpad_kv_seqlen": "key_lengths",
    "random_state": "seed",
    "rng": "seed",
    "MHA": "MultiheadAttention",
}


def meant(name: str, names: Iterable[str]) -> str:
    """Return ``; did you mean 'kdim'?`` for the one of `names` that is most like `name`, or ''."""
    names = list(names)
    known = _MEANT.get(name)
    if known not in names:
        from difflib import get_close_matches

        like = {other.lower(): other for other in names}
        close = get_close_matches(name.lower(), like, 1, 0.7)
        known = like[close[0]] if close else None
    return f"; did you mean {known!r}?" if known else ""


def unknown(function: Any, options: Mapping[str, Any]) -> TypeError:
    """Make the error for keyword arguments that `function` does not take."""
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    name = next(iter(options))
    what = f"{function.__qualname__}() got an unexpected keyword argument {name!r}"
    return TypeError(what + meant(name, names))


def shown_without_unknown(function: F) -> F:
    """Show ``help`` and ``inspect.signature`` no ``**unknown_options``: it is for `unknown` alone.

    Examples
    --------
    >>> @shown_without_unknown
    ... def double(x, **unknown_options): ...
    >>> inspect.signature(double)
    <Signature (x)>
    """
    whole = inspect.signature(function)
    known = [x for x in whole.parameters.values() if x.kind is not x.VAR_KEYWORD]
    vars(function)["__signature__"] = whole.replace(parameters=known)
    return function
