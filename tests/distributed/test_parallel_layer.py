"""Layers on ranks that are threads, beside the layer in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sharded_layers import PROBLEMS, Problem, Results, cut, exact, part_of, solve, whole

import multihead as mh
from multihead import Ragged
from multihead.distributed import Communicator, ContextParallel, ParallelAttention, threads
from tolerance import FORWARD, GRADIENT, assert_close, error, tolerance

pytestmark = pytest.mark.timeout(120)

BOUND = {"float32": 1e-6, "float64": 1e-13}
Way = Callable[[Communicator], ContextParallel]


def mesh(ranks: Communicator) -> ContextParallel:
    """Two ranks of a ring by two that exchange heads."""
    row, column = divmod(ranks.rank, 2)
    heads = threads.part_of(ranks, [2 * row, 2 * row + 1])
    ring = threads.part_of(ranks, [column, column + 2])
    return ContextParallel(heads, "all_to_all", "zigzag", ring)


WAYS: dict[str, tuple[int, Way]] = {
    "ring-1": (1, lambda ranks: ContextParallel(ranks)),
    "ring-2": (2, lambda ranks: ContextParallel(ranks, sharding="zigzag")),
    "ring-3": (3, lambda ranks: ContextParallel(ranks)),
    "ring-4": (4, lambda ranks: ContextParallel(ranks, sharding="zigzag")),
    "all-to-all-2": (2, lambda ranks: ContextParallel(ranks, "all_to_all")),
    "all-to-all-3": (3, lambda ranks: ContextParallel(ranks, "all_to_all", "zigzag")),
    "mesh-4": (4, mesh),
}


def flat(x: Any) -> np.ndarray:
    return np.asarray(x.values if isinstance(x, Ragged) else x)


def bits(results: list[Results]) -> list[dict[str, bytes]]:
    return [{name: flat(x).tobytes() for name, x in found.items()} for found in results]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_ranks_give_what_the_layer_does(problem: Problem) -> None:
    """As near to one process as the bound says, or as near to float64 as one process is."""
    dtype = problem.of_inputs or problem.dtype
    one, wide = whole(problem), exact(problem)
    largest = {what: float(np.abs(flat(x)).max()) for what, x in wide.items()}
    for name, (size, way) in WAYS.items():

        def program(ranks: Communicator, way: Way = way) -> tuple[Results, ...]:
            parallel = way(ranks)
            parts = (part_of(problem, parallel, x) for x in (one, wide))
            return solve(problem, parallel), *parts

        ran = threads.run(size, program, timeout=20)
        for found, of_one, of_wide in ran:
            assert found.keys() == of_one.keys() == of_wide.keys()
            for what, x in found.items():
                here, there, truth = flat(x), flat(of_one[what]), flat(of_wide[what])
                assert here.dtype == there.dtype
                scale = largest[what]
                bound = BOUND.get(dtype, tolerance(FORWARD if what == "out" else GRADIENT, dtype))
                if error(here, there, scale=scale) > bound:
                    known = tolerance(FORWARD if what == "out" else GRADIENT, dtype)
                    bound = min(known, max(bound, error(there, truth, scale=scale)))
                    assert_close(here, truth, bound, f"{what}, {name}", scale=scale)
        same = [{k: v for k, v in found.items() if "grads" in k} for found, *_ in ran]
        assert all(x == bits(same)[0] for x in bits(same)), name


@pytest.mark.parametrize("problem", [PROBLEMS[4], PROBLEMS[9]], ids=str)
@pytest.mark.parametrize("way", ["ring-3", "mesh-4"])
def test_runs_give_the_same_bits(problem: Problem, way: str) -> None:
    size, made = WAYS[way]
    runs = [threads.run(size, lambda r: solve(problem, made(r)), timeout=20) for _ in range(3)]
    assert bits(runs[1]) == bits(runs[0]) == bits(runs[2])


def test_parts_may_be_of_any_lengths() -> None:
    """Positions follow from what the ranks hold, not from an even cut."""
    problem = Problem(("rope", "causal", "alibi", "added_padding", "bias_kv"), keys=57)
    arrays, masks, expected = problem.arrays(), problem.masks(), whole(problem)
    ends = [0, 31, 31, 40, 57]  # rank 1 has no tokens

    def program(ranks: Communicator) -> Results:
        own = slice(ends[ranks.rank], ends[ranks.rank + 1])
        attention = problem.layer().parallel(ranks, 1)
        inputs = [arrays[name][:, own] for name in ("query", "key", "value", "d_out")]
        found: Results = {}
        for _ in range(2):
            out, _ = attention(
                *inputs[:3], key_padding_mask=masks["key_padding_mask"][:, own], is_causal=True
            )
            gradients = attention.backward(inputs[3])
            found = dict(zip(("out", "query", "key", "value"), (out, *gradients), strict=True))
        return found | {f"grads.{name}": x for name, x in attention.grads.items()}

    ran = threads.run(4, program, timeout=20)
    for name in ran[0]:
        x = ran[0][name]
        if not name.startswith("grads"):
            x = np.concatenate([found[name] for found in ran], axis=1)
        assert_close(x, expected[name], 1e-6, name)


def test_a_hidden_key_is_not_read() -> None:
    problem = Problem(("padding", "bias_kv"))

    def program(ranks: Communicator, spoilt: bool) -> Results:
        parallel = ContextParallel(ranks)
        arrays, masks = cut(problem, parallel)
        if spoilt:
            for name in ("key", "value"):
                arrays[name][masks["key_padding_mask"]] = np.nan
        attention = problem.layer().parallel(parallel)
        out, _ = attention(arrays["query"], arrays["key"], arrays["value"], **masks)
        attention.backward(arrays["d_out"])
        return {"out": out, **attention.grads}

    clean, spoilt = (
        threads.run(2, lambda ranks, x=this: program(ranks, x), timeout=20)
        for this in (False, True)
    )
    assert bits(clean) == bits(spoilt)


def test_a_query_without_keys_gives_the_bias_of_the_output() -> None:
    def program(ranks: Communicator) -> tuple[np.ndarray, np.ndarray]:
        layer = mh.MultiheadAttention(8, 2, seed=0, add_zero_attn=True, sinks=True).eval()
        layer.out_proj.bias = np.arange(8, dtype=np.float32)
        x = np.ones((3, 1, 8), np.float32)
        out, _ = layer.parallel(ranks)(x, x, x, attn_mask=np.ones((3, 6), bool))
        return out, layer.out_proj.bias

    for out, bias in threads.run(2, program, timeout=20):
        assert (out == bias).all()


def test_mode_state_and_gradients_are_those_of_the_layer() -> None:
    def program(ranks: Communicator) -> None:
        layer = mh.MultiheadAttention(8, 2, dropout=0.5, seed=3)
        attention = layer.parallel(ranks)
        x = np.ones((3, 1, 8), np.float32)
        first, _ = attention(x, x, x)
        assert layer.rng_state == attention.rng_state == (3, 1)
        second, _ = attention(x, x, x)
        assert error(first, second) > 0.01
        layer.rng_state = 3, 0
        assert attention(x, x, x)[0].tobytes() == first.tobytes()
        kept = attention.cache
        attention.backward(first)
        assert attention.cache is None
        once = {name: grad.copy() for name, grad in layer.grads.items()}
        attention.backward(first, cache=kept)
        assert all((layer.grads[name] == 2 * x).all() for name, x in once.items())
        layer.eval()
        attention(x, x, x)
        assert attention.cache is None
        assert layer.rng_state == (3, 1)

    threads.run(2, program, timeout=20)


def test_arrays_of_other_libraries_stay_of_their_kind() -> None:
    torch = pytest.importorskip("torch")
    layer = mh.MultiheadAttention(8, 2, seed=0)
    x = torch.linspace(-1, 1, 7 * 2 * 8).reshape(7, 2, 8).to(torch.bfloat16)
    whole, _ = layer(x, x, x)

    def program(ranks: Communicator) -> tuple[Any, ...]:
        attention = mh.MultiheadAttention(8, 2, seed=0).parallel(ranks)
        part = attention.parallel.shard(x, 0)
        out, _ = attention(part, part, part)
        return attention.parallel.gather(out, 0), *attention.backward(out)

    for found in threads.run(2, program, timeout=20):
        assert {y.dtype for y in found} == {torch.bfloat16}
        assert torch.allclose(found[0].float(), whole.float(), atol=8e-3)


ONE = np.ones((3, 1, 8), np.float32)
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"query": ONE[..., :7]}, r"query: expected \(L, N, 8\)"),
    ({"need_weights": True}, "need_weights: expected False"),
    ({"is_causal": "yes"}, "is_causal: expected True or False"),
    ({"is_causal": True}, "is_causal: expected False, as on rank 0, got True on rank 1"),
    ({"key_padding_mask": np.ones((1, 4), bool)}, r"key_padding_mask: expected \(1, 3\)"),
    ({"key_padding_mask": np.ones((1, 3), bool)}, "key_padding_mask: expected None"),
    ({"attn_mask": np.ones((3, 6), bool)}, "attn_mask: expected None"),
    ({"query": ONE.astype(np.float16)}, "dtype|key: expected float16"),
    ({"query": np.ones((3, 2, 8), np.float32)}, "key: expected"),
]


@pytest.mark.parametrize(("changed", "said"), MISTAKES, ids=[said[:30] for _, said in MISTAKES])
def test_a_mistake_of_one_rank_is_an_error_of_all(changed: dict[str, Any], said: str) -> None:
    def program(ranks: Communicator) -> bool:
        layer = mh.MultiheadAttention(8, 2, dropout=0.1, seed=0)
        attention = layer.parallel(ranks)
        call = {"query": ONE, "key": ONE, "value": ONE} | (changed if ranks.rank == 1 else {})
        with pytest.raises((ValueError, TypeError), match=said):
            attention(**call)
        assert layer.rng_state == (0, 0)
        out, _ = attention(ONE, ONE, ONE)
        return out.shape == ONE.shape

    assert all(threads.run(3, program, timeout=20))


def test_rows_of_a_mask_that_do_not_fit_are_an_error_of_all() -> None:
    def program(ranks: Communicator) -> None:
        attention = mh.MultiheadAttention(8, 2, seed=0).parallel(ranks)
        mask = np.zeros((3, 6 + ranks.rank), bool)
        with pytest.raises(ValueError, match=r"attn_mask: expected .*\(3, 6\)"):
            attention(ONE, ONE, ONE, attn_mask=mask)

    threads.run(2, program, timeout=20)


def test_mistakes_of_backward_change_nothing() -> None:
    def program(ranks: Communicator) -> None:
        layer = mh.MultiheadAttention(8, 2, seed=0)
        attention = layer.parallel(ranks)
        with pytest.raises(ValueError, match="cache: expected one of a call in training mode"):
            attention.backward(ONE)
        attention(ONE, ONE, ONE)
        first = attention.cache
        attention(ONE, ONE, ONE)
        with pytest.raises(ValueError, match=r"d_out: expected \(3, 1, 8\)"):
            attention.backward(ONE[:, :, :7] if ranks.rank else ONE)
        with pytest.raises(ValueError, match="cache: expected of call 2, as on rank 0"):
            attention.backward(ONE, cache=first if ranks.rank else None)
        assert not any(grad.any() for grad in layer.grads.values())
        attention.backward(ONE)
        assert layer.grads["out_proj.bias"][0] == 6

    threads.run(2, program, timeout=20)


def test_ranks_whose_layers_differ_are_told() -> None:
    def differing(ranks: Communicator, **options: Any) -> None:
        own = {"seed": 0} | (options if ranks.rank == 1 else {})
        layer = mh.MultiheadAttention(8, 2, **own)
        name = "in_proj_weight" if "seed" in options else next(iter(options))
        with pytest.raises(ValueError, match=f"{name}: expected .* on rank 1"):
            layer.parallel(ranks)

    for options in ({"seed": 1}, {"window": 3}, {"rope": mh.Rope()}, {"sinks": True}):
        threads.run(2, lambda ranks, o=options: differing(ranks, **o), timeout=20)

    def drawing(ranks: Communicator) -> None:
        layer = mh.MultiheadAttention(8, 2, dropout=0.1, seed=0)
        attention = layer.parallel(ranks)
        layer.rng_state = ranks.rank, 5
        with pytest.raises(ValueError, match=r"rng_state: expected .*0, 5.* as on rank 0"):
            attention(ONE, ONE, ONE)
        assert layer.rng_state == (ranks.rank, 5)

    threads.run(2, drawing, timeout=20)


@pytest.mark.parametrize(
    ("batch_first", "axis", "said"),
    [
        (False, 1, "sequence_dim: expected 0, .*got 1, that of the batch"),
        (True, 0, "sequence_dim: expected 1, .*got 0, that of the batch"),
        (True, -1, "sequence_dim: expected 1, .*got -1, that of the features"),
        (False, 3, "sequence_dim: expected an integer from -3 to 2"),
    ],
)
def test_another_axis_is_an_error(batch_first: bool, axis: int, said: str) -> None:
    def program(ranks: Communicator) -> None:
        layer = mh.MultiheadAttention(8, 2, batch_first=batch_first, seed=0)
        with pytest.raises(ValueError, match=said):
            layer.parallel(ranks, axis)
        for right in (int(batch_first), int(batch_first) - 3):
            assert isinstance(layer.parallel(ranks, right), ParallelAttention)

    threads.run(2, program, timeout=20)


def test_what_a_context_parallel_has_is_not_said_twice() -> None:
    def program(ranks: Communicator) -> None:
        layer = mh.MultiheadAttention(8, 2, seed=0)
        with pytest.raises(TypeError, match="scheme, sharding, ring"):
            layer.parallel(ContextParallel(ranks), scheme="all_to_all")
        with pytest.raises(ValueError, match="layer: expected one of at least 3 heads"):
            layer.parallel(ranks, scheme="all_to_all")

    threads.run(3, program, timeout=20)


def test_what_travels_is_what_the_page_says() -> None:
    length, embed, size = 60, 24, 3

    def program(ranks: Communicator) -> tuple[int, int]:
        attention = mh.MultiheadAttention(embed, 2, seed=0, batch_first=True).parallel(ranks)
        part = np.ones((1, length // size, embed), np.float32)
        ranks.bytes_sent = 0
        out, _ = attention(part, part, part)
        forward, ranks.bytes_sent = ranks.bytes_sent, 0
        attention.backward(out)
        return forward, ranks.bytes_sent

    parameters = 4 * embed * embed + 4 * embed
    keys = length // size * 2 * embed * 4
    others = size - 1
    for forward, backward in threads.run(size, program, timeout=20):
        assert forward == others * (keys + 2 * 2048 + 2 * 8 + 16)
        assert backward == others * (2 * keys + 2048) + 2 * others * parameters * 4 // size
