"""Masks that say the opposite of what was meant are worth a warning, once."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import multihead as mh
from multihead.functional import scaled_dot_product_attention

N, H, L, S = 3, 2, 5, 7
PADDED = np.arange(S) >= np.array([S, 4, 2])[:, None]  # (N, S), True = padding
CAUSAL = ~np.tri(L, S, dtype=bool)
MINUS = -np.inf


def layer(**options: Any) -> mh.MultiheadAttention:
    return mh.MultiheadAttention(8, H, batch_first=True, seed=0, **options)


def call(of: mh.MultiheadAttention, **masks: Any) -> None:
    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((N, n, 8)).astype(np.float32) for n in (L, S))
    of(query, key, key, **masks)


def lower(rows: int, columns: int) -> np.ndarray:
    return np.tri(rows, columns, columns - rows, dtype=bool)


DOUBTFUL: dict[str, tuple[dict[str, Any], str]] = {
    "lower triangle": (
        {"attn_mask": lower(L, S)},
        r"attn_mask: 1 of 5 queries see no key in any sequence; True means ignore \(~attn_mask\?\)",
    ),
    "lower triangle, 4-D": ({"attn_mask": lower(L, S)[None, None]}, "attn_mask: 1 of 5 queries"),
    "lower triangle, each head": (
        {"attn_mask": np.repeat(lower(L, S)[None], N * H, 0)},
        "attn_mask: 1 of 5 queries",
    ),
    "all": ({"attn_mask": np.ones((1, 1, 1, S), bool)}, "attn_mask: 5 of 5 queries"),
    "floats": (
        {"attn_mask": np.where(lower(L, S), MINUS, 0).astype(np.float32)},
        "attn_mask: 1 of 5 queries .*; -inf hides",
    ),
    "no padding, 1 = keep": (
        {"key_padding_mask": np.ones((N, S), bool)},
        r"key_padding_mask: every key is hidden in every sequence; .* \(~key_padding_mask\?\)",
    ),
    "padding, 1 = keep": (
        {"key_padding_mask": ~PADDED},
        r"key_padding_mask: every key is hidden in 1 of 3 sequences, and the first in all; "
        r"True means ignore \(~key_padding_mask\?\)",
    ),
    "padding of floats, hidden where there are tokens": (
        {"key_padding_mask": np.where(PADDED, 0, MINUS).astype(np.float32)},
        "key_padding_mask: every key is hidden in 1 of 3 sequences, and the first in all; -inf",
    ),
    "zeros and ones": (
        {"attn_mask": lower(L, S).astype(np.float32)},
        "attn_mask: zeros and ones are added to the scores; attn_mask == 0 hides where it is 0",
    ),
    "padding of zeros and ones": (
        {"key_padding_mask": 1.0 - PADDED},
        "key_padding_mask: zeros and ones are added .* key_padding_mask == 0 hides",
    ),
}

FINE: dict[str, dict[str, Any]] = {
    "causal": {"attn_mask": CAUSAL},
    "causal twice": {"attn_mask": CAUSAL, "is_causal": True},
    "padding": {"key_padding_mask": PADDED},
    "padding and causal": {"attn_mask": CAUSAL, "key_padding_mask": PADDED},
    "padding on the left": {"key_padding_mask": PADDED[:, ::-1]},
    "one sequence hidden": {"key_padding_mask": np.arange(N)[:, None] + np.zeros(S) > 1},
    "a query hidden in one": {"attn_mask": (np.arange(N)[:, None, None, None] == 1) & lower(L, S)},
    "a bias of zeros": {"attn_mask": np.zeros((L, S), np.float32)},
    "a bias of ones": {"attn_mask": np.ones((L, S), np.float32)},
    "a bias": {"attn_mask": np.linspace(0, 1, L * S, dtype=np.float32).reshape(L, S)},
    "not a number": {"attn_mask": np.full((L, S), np.nan, np.float32)},
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_a_doubtful_mask_warns_once(case: str) -> None:
    masks, message = DOUBTFUL[case]
    of = layer()
    with pytest.warns(mh.MaskWarning, match=f"^{message}") as caught:
        call(of, **masks)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(of, **masks)


def test_each_argument_has_a_warning_of_its_own() -> None:
    of = layer()
    for case in ("lower triangle", "no padding, 1 = keep"):
        masks, message = DOUBTFUL[case]
        with pytest.warns(mh.MaskWarning, match=f"^{message}"):
            call(of, **masks)


@pytest.mark.parametrize("case", FINE)
def test_a_plausible_mask_does_not(case: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(layer(), **FINE[case])


def test_queries_that_see_extra_keys_see_something() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
            call(layer(**options), **DOUBTFUL["all"][0])
            call(layer(**options), **DOUBTFUL["no padding, 1 = keep"][0])


def test_no_keys_and_no_queries_are_no_doubt() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of = layer()
        for queries, keys in ((0, 4), (4, 0)):
            q, k = np.zeros((1, queries, 8), np.float32), np.zeros((1, keys, 8), np.float32)
            of(q, k, k, attn_mask=np.ones((queries, keys), bool))


def test_as_an_error_it_changes_nothing() -> None:
    of = layer(dropout=0.5)
    before = of.rng_state
    with warnings.catch_warnings():
        warnings.simplefilter("error", mh.MaskWarning)
        for _ in range(2):
            with pytest.raises(mh.MaskWarning):
                call(of, **DOUBTFUL["all"][0])
    assert of.rng_state == before
    assert of.cache is None


def test_the_first_four_masks_are_looked_at() -> None:
    for fine in range(7):
        of = layer()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(fine):
                call(of, **FINE["causal"])
            call(of, need_weights=False)
            call(of, **DOUBTFUL["all"][0])
        assert len(caught) == (fine < 4)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            np.tri(L, S, -2, dtype=bool),
            r"attn_mask: 2 of 5 queries .*; True means attend \(~attn_mask\?\)",
        ),
        (
            ~CAUSAL * np.float32(1),
            "attn_mask: zeros and ones .* attn_mask != 0 hides where it is 0",
        ),
    ],
)
def test_in_the_function(mask: np.ndarray, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from multihead import functional
    from multihead.mask_warning import MaskWatch

    monkeypatch.setattr(functional, "_WATCH", MaskWatch(true_hides=False, left=64))
    q, k = np.ones((N, H, L, 4), np.float32), np.ones((N, H, S, 4), np.float32)
    with pytest.warns(mh.MaskWarning, match=f"^{message}") as caught:
        scaled_dot_product_attention(q, k, k, mask)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled_dot_product_attention(q, k, k, ~CAUSAL)
