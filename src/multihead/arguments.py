"""What a call of the engine is given: tensors or arrays, and options, by name."""

from __future__ import annotations

from typing import Any, NamedTuple, SupportsInt


class LayerTensors(NamedTuple):
    """Inputs, masks and parameters of a layer's call; also their gradients.

    Attributes
    ----------
    query, key, value
        (N, L, E), (N, S, kdim), (N, S, vdim), tokens first (L, N, E) and so on; of a ragged batch
        (total, features). A value that is the key is None, a key that is the query too.
    padding
        (N, S): bool, true hides, or floats, which are added.
    mask
        (L, S), (N * H, L, S), or four axes broadcastable to (N, H, L, S); as `padding`.
    in_weight
        (H * D + 2 * Hk * D, E), or None with one weight for each:
    q_weight, k_weight, v_weight
        (H * D, E), (Hk * D, kdim), (Hk * D, vdim).
    in_bias
        (H * D + 2 * Hk * D,).
    bias_k, bias_v
        (1, 1, Hk * D): a key and a value more.
    out_weight, out_bias
        (E, H * D) and (E,).
    sinks
        (H,).
    alibi_slopes
        (H,) or (N, H); no parameter, as the rest.
    cosine, sine
        (pairs, positions): the angles of rotary positions, in what is computed in.
    """

    query: Any
    key: Any
    value: Any
    padding: Any
    mask: Any
    in_weight: Any
    q_weight: Any
    k_weight: Any
    v_weight: Any
    in_bias: Any
    bias_k: Any
    bias_v: Any
    out_weight: Any
    out_bias: Any
    sinks: Any = None
    alibi_slopes: Any = None
    cosine: Any = None
    sine: Any = None

    @property
    def three(self) -> tuple[Any, Any, Any]:
        """Query, key and value, given or not."""
        key = self.query if self.key is None else self.key
        return self.query, key, key if self.value is None else self.value


class LayerParameters(NamedTuple):
    """The fields of `LayerTensors` that are parameters."""

    in_weight: Any = None
    q_weight: Any = None
    k_weight: Any = None
    v_weight: Any = None
    in_bias: Any = None
    bias_k: Any = None
    bias_v: Any = None
    out_weight: Any = None
    out_bias: Any = None
    sinks: Any = None


class LayerOptions(NamedTuple):
    """What a layer's call says beside its tensors.

    Attributes
    ----------
    dtype : str
        What it is computed in, and the results are of. Tensors may be of another dtype: float32,
        float16 and bfloat16 go together.
    num_heads, key_heads, head_dim : int
        H, Hk and D.
    zero_row : bool
        A key and a value of zeros more.
    causal : bool
    average : bool or None
        Weights averaged over the heads, or for each; None: no weights.
    tokens_first : bool
        Inputs are (tokens, N, features).
    dropout_p : float
        Probability of dropout.
    seed : int or None
        Of dropout; None: not drawn. A tensor where PyTorch traces the call.
    counter : int
        Which of the calls that share a seed.
    softcap, window_left, window_right
        As in `AttentionOptions`.
    interleaved : bool
        Rotary positions turn features 2 i and 2 i + 1 together, not i and i + pairs.
    """

    dtype: str
    num_heads: int
    key_heads: int
    head_dim: int
    zero_row: bool
    causal: bool
    average: bool | None
    tokens_first: bool
    dropout_p: float
    seed: SupportsInt | None
    counter: int = 0
    softcap: float = 0.0
    window_left: int = -1
    window_right: int = -1
    interleaved: bool = False


class CachedKeys(NamedTuple):
    """Keys and values that a layer's call adds to.

    Attributes
    ----------
    keys, values
        (N, Hk, capacity, D), of any floating dtype that goes together with the call's.
    rows
        int64 (N,): how many of them are filled.
    positions
        int64 (N,): how many tokens there were before.
    """

    keys: Any
    values: Any
    rows: Any
    positions: Any


class AttentionTensors(NamedTuple):
    """Inputs and mask of scaled dot-product attention; also their gradients.

    Attributes
    ----------
    query, key, value
        (N, H, L, D), (N, Hk, S, D), (N, Hk, S, Dv); Hk divides H. Of a ragged batch (total, H, D)
        and so on.
    mask
        Four axes, broadcastable to (N, H, L, S): bool, or floats, which are added.
    alibi_slopes
        (H,) or (N, H).
    sinks
        (H,).
    query_offsets, key_offsets
        int64 (N + 1,): where the sequences of a ragged batch begin, and the last one ends; both or
        none.
    query_positions, key_lengths
        int64 (N,): where the first query of each sequence stands among its keys, and how many of
        its keys exist.
    """

    query: Any
    key: Any
    value: Any
    mask: Any = None
    alibi_slopes: Any = None
    sinks: Any = None
    query_offsets: Any = None
    key_offsets: Any = None
    query_positions: Any = None
    key_lengths: Any = None


class AttentionOptions(NamedTuple):
    """What a call of scaled dot-product attention says beside its tensors.

    Attributes
    ----------
    dtype : str
        What it is computed in; see `LayerOptions`.
    causal : bool
    scale : float
    dropout_p : float
        Probability of dropout.
    seed : int or None
        Of dropout; None: not drawn. A tensor where PyTorch traces the call.
    counter : int
        Which of the calls that share a seed.
    true_hides : bool
        What a boolean mask's true says: hidden, or to be attended to.
    batch_offset, head_offset, query_offset, key_offset : int
        Where the call's tensors begin in the whole, for dropout and causality.
    softcap : float
        Scores are s to softcap * tanh(s / softcap); 0: they are not capped.
    window_left, window_right : int
        Keys that a query sees before and after its own place; -1: all.
    """

    dtype: str
    causal: bool
    scale: float
    dropout_p: float
    seed: SupportsInt | None
    counter: int = 0
    true_hides: bool = False
    batch_offset: int = 0
    head_offset: int = 0
    query_offset: int = 0
    key_offset: int = 0
    softcap: float = 0.0
    window_left: int = -1
    window_right: int = -1
