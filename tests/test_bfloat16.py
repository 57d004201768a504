"""bfloat16 on kernel sets that multiply pairs of it: bits, threads, and the oracle."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import kernel_sets
import multihead as mh
import net_numpy
from cases import Construction, make_call, make_layer, oracle_step
from multihead import _native
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)
from net_draws import Digest, Draws
from tolerance import FORWARD, GRADIENT, assert_all_close, assert_close, tolerance

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
TWINS = [
    (emulated, real)
    for emulated, real in kernel_sets.EMULATED.items()
    if real in kernel_sets.OF_PAIRS
]
CALLS = {
    "layer": partial(net_numpy.layer_call, dtype=BFLOAT16),
    "ragged": partial(net_numpy.ragged_call, dtype=BFLOAT16),
    "functional": partial(net_numpy.functional_call, dtype=BFLOAT16),
    "few queries": partial(net_numpy.functional_call, dtype=BFLOAT16, few=True),
}


@pytest.fixture(
    params=[pytest.param(name, id=f"isa-{name}") for name in kernel_sets.DISTINCT_PAIRS]
)
def pairs(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test with each set that multiplies pairs, emulated if need be."""
    before = _native.use_isa(request.param)
    yield request.param
    _native.use_isa(before)


def digests(kind: str, calls: int, sets: tuple[str, ...], threads: tuple[int, ...]) -> None:
    """Random calls give the same bits with every set and any number of threads."""
    before = _native.isa(), mh.get_num_threads()
    try:
        for i in range(calls):
            found = {}
            for isa in sets:
                for n in threads:
                    _native.use_isa(isa)
                    mh.set_num_threads(n)
                    digest = Digest()
                    call = CALLS[kind](Draws(f"bfloat16, {kind}, call {i}"), digest)
                    found[isa, n] = str(digest)
            assert len(set(found.values())) == 1, (i, call, found)
    finally:
        _native.use_isa(before[0])
        mh.set_num_threads(before[1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize(("emulated", "real"), TWINS, ids=[real for _, real in TWINS])
def test_emulated_instructions_give_the_bits_of_the_processor(
    kind: str, emulated: str, real: str
) -> None:
    digests(kind, 20, (emulated, real), (2,))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", CALLS)
def test_threads_change_no_bits(kind: str, pairs: str) -> None:
    digests(kind, 6 if pairs in kernel_sets.EMULATED else 25, (pairs,), (1, 2, 3))


@pytest.mark.parametrize("head_dim", [1, 5, 16, 20, 32, 33, 64])
@pytest.mark.parametrize("causal", [False, True])
def test_a_step_is_that_of_the_oracle(
    pairs: str, head_dim: int, causal: bool, rng: np.random.Generator
) -> None:
    how = Construction(3 * head_dim, 3, dropout=0.2, add_bias_kv=True, layout="batch first")
    plain = make_layer(how, rng)
    mask = "none" if causal else "float 2-D"
    options = {"mask": mask, "is_causal": causal, "padding": "bool", "weights": "average"}
    call = make_call(how, rng, 2, 67, 67, **options)
    layer = mh.MultiheadAttention(
        3 * head_dim,
        3,
        dropout=0.2,
        add_bias_kv=True,
        batch_first=True,
        dtype="bfloat16",
        seed=1,
    )
    layer.load_state_dict(plain.state_dict())

    def rounded(x: Any) -> Any:
        return x.astype(BFLOAT16) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x

    def widened(x: Any) -> Any:
        return x.astype(np.float64) if getattr(x, "dtype", None) == BFLOAT16 else x

    half = replace(
        call,
        **{name: rounded(getattr(call, name)) for name in ("query", "key", "value", "d_out")},
        options={name: rounded(x) for name, x in call.options.items()},
        d_weights=rounded(call.d_weights),
    )
    wide = replace(
        half,
        **{name: widened(getattr(half, name)) for name in ("query", "key", "value", "d_out")},
        options={name: widened(x) for name, x in half.options.items()},
        d_weights=widened(half.d_weights),
    )
    params = {name: x.astype(np.float64) for name, x in layer.state_dict().items()}
    expected = oracle_step(params, how, wide, layer.rng_state)
    out, weights = layer(half.query, half.key, half.value, **half.options)
    grads = layer.backward(half.d_out, half.d_weights, need_mask_grad=not causal)
    names = ("query", "key", "value", "attn_mask")[: 3 if causal else 4]
    found = dict(zip(names, grads, strict=False)) | layer.grads
    assert_close(out, expected.out, tolerance(FORWARD, "bfloat16"), "out")
    assert_close(weights, expected.weights, tolerance(FORWARD, "bfloat16"), "weights")
    assert_all_close(
        found, {name: expected.grads[name] for name in found}, tolerance(GRADIENT, "bfloat16")
    )


@pytest.mark.parametrize("where", ["key", "value", "both"])
def test_what_a_mask_hides_may_be_no_number(
    pairs: str, where: str, rng: np.random.Generator
) -> None:
    q, k, v, g = (rng.standard_normal((2, 3, 70, 20)).astype(BFLOAT16) for _ in range(4))
    mask = rng.random((70, 70)) < 0.7
    mask[:, 0], mask[:, 1] = True, False
    clean = [k.copy(), v.copy()]
    for x in (k, v):
        if where == "both" or x is {"key": k, "value": v}[where]:
            x[:, :, 1] = np.nan
    for x in clean:
        x[:, :, 1] = 0
    out, cache = scaled_dot_product_attention(q, k, v, mask, return_cache=True)
    expected, other = scaled_dot_product_attention(q, *clean, mask, return_cache=True)
    tight = tolerance(FORWARD, "bfloat16")
    assert_close(out, expected, tight, "out")
    grads = scaled_dot_product_attention_backward(g, cache)
    for name, a, b in zip(
        "qkv", grads, scaled_dot_product_attention_backward(g, other), strict=True
    ):
        assert_close(a, b, tight, name)


def attend(q: Any, k: Any, v: Any, g: Any, scale: float) -> list[Any]:
    """Output and gradients, by PyTorch."""
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = torch.nn.functional.scaled_dot_product_attention(*leaves, scale=scale)
    out.backward(g)
    return [out.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("logits", [1, 10, 100])
@pytest.mark.parametrize(("queries", "keys"), [(5, 64), (33, 31), (64, 65), (130, 700)])
def test_errors_are_no_larger_than_those_of_pytorch(
    pairs: str, queries: int, keys: int, logits: int, rng: np.random.Generator
) -> None:
    heads = max(8, 1024 // queries)
    shapes = [(1, heads, n, 32) for n in (queries, keys, keys, queries)]
    tensors = [torch.from_numpy(rng.standard_normal(x)).bfloat16() for x in shapes]
    scale = logits / 32**0.5
    exact = attend(*(x.double() for x in tensors), scale)
    theirs = attend(*tensors, scale)
    *arrays, g = (x.view(torch.uint16).numpy().view(BFLOAT16) for x in tensors)
    out, cache = scaled_dot_product_attention(*arrays, scale=scale, return_cache=True)
    ours = [out, *scaled_dot_product_attention_backward(g, cache)]
    for name, x, y, z in zip(("out", "d_q", "d_k", "d_v"), ours, theirs, exact, strict=True):
        error = np.linalg.norm(x.astype(np.float64) - z.numpy())
        assert error <= 1.1 * float((y.double() - z).norm()), name


@pytest.mark.skipif("amx" not in kernel_sets.OF_PAIRS, reason="this processor has no AMX")
def test_where_the_system_refuses_tiles_another_set_runs() -> None:
    program = Path(__file__).with_name("refused_tiles.py")
    environment = {name: x for name, x in os.environ.items() if name != "MULTIHEAD_ISA"}
    done = subprocess.run(
        [sys.executable, program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    names, error = done.stdout.splitlines()
    available = _native.available_isas()
    assert names.split() == ["avx512", *(x for x in available[:5] if x != "amx")]
    assert float(error) < tolerance(FORWARD, "bfloat16")
