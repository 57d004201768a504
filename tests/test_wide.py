"""Wide layers and many tokens: the passes that copy, split or fold only then."""

from __future__ import annotations

import numpy as np
import pytest

from cases import Construction, layer_step, make_call, make_layer, oracle_step
from tolerance import FORWARD, GRADIENT, assert_all_close, assert_close, tolerance

CASES = {
    "weights in panels": (Construction(512, 8), (2, 530, 530), {}),
    "other widths": (Construction(512, 4, kdim=528, vdim=640), (2, 300, 290), {}),
    "not a multiple of 16": (Construction(522, 9), (2, 600, 520), {}),
    "panels in both directions": (Construction(92, 2, kdim=50, vdim=34), (9, 240, 237), {}),
    "panels for keys alone": (Construction(48, 3, kdim=30), (9, 20, 240), {}),
    "panels for queries alone": (Construction(48, 3, vdim=30), (9, 240, 20), {}),
    "folded tokens": (Construction(96, 3, dropout=0.1), (17, 250, 250), {"is_causal": True}),
    "groups of keys": (Construction(64, 1), (1, 70, 1300), {"padding": "bool"}),
    "a sequence at a time": (
        Construction(40, 4, add_bias_kv=True, add_zero_attn=True, kdim=20, dropout=0.1),
        (20, 33, 21),
        {"padding": "float", "mask": "float 2-D", "weights": "average"},
    ),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_oracle(name: str, dtype: str, rng: np.random.Generator) -> None:
    how, sizes, options = CASES[name]
    how = Construction(**(vars(how) | {"dtype": dtype}))
    layer = make_layer(how, rng)
    call = make_call(how, rng, *sizes, **options)
    state = layer.rng_state
    ours = layer_step(layer, call)
    oracle = oracle_step(layer.state_dict(), how, call, state)
    assert_close(ours.out, oracle.out, tolerance(FORWARD, dtype), "out")
    assert_all_close(ours.grads, oracle.grads, tolerance(GRADIENT, dtype), name, sizes=oracle.sizes)
