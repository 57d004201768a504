"""Problems of sharded attention: made alike on every rank, cut up, solved, and put together."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

from multihead import Ragged, functional
from multihead.distributed import (
    Communicator,
    all_to_all_attention,
    all_to_all_attention_backward,
    positions,
    ring_attention,
    ring_attention_backward,
    shard,
)
from score_options import drawn_options

N, H, D, DV = 2, 4, 16, 24
OUTPUTS = ("out", "lse")
GRADIENTS = ("query", "key", "value", "mask", "sinks")
Results = dict[str, Any]
SCHEMES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "ring": (ring_attention, ring_attention_backward),
    "all-to-all": (all_to_all_attention, all_to_all_attention_backward),
}


@dataclass(frozen=True)
class Problem:
    """A call, by what it has: names of `score_options`, lengths, heads of keys, dtypes."""

    has: tuple[str, ...] = ()
    queries: int = 117
    keys: int = 131
    heads: int = H
    key_heads: int = H
    dtype: str = "float32"
    of_keys: str = ""  # another dtype of theirs
    lengths: tuple[tuple[int, int], ...] = ()  # of packed sequences
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        told = [*self.has, self.dtype + self.of_keys, f"{self.queries}x{self.keys}"]
        told += [f"{len(self.lengths)}packed"] * bool(self.lengths)
        return "-".join([*told, f"{self.heads}to{self.key_heads}heads", *self.options])

    @property
    def packed(self) -> bool:
        return bool(self.lengths)

    @property
    def random(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(str(self).encode()))

    def arrays(self) -> Results:
        """Inputs and gradients of outputs, whole."""
        rng, packed = self.random, self.lengths
        made: Results = {}
        sizes = {
            "query": (self.heads, D),
            "key": (self.key_heads, D),
            "value": (self.key_heads, DV),
        }
        sizes |= {"d_out": (self.heads, DV), "d_lse": (self.heads, 1)}
        for name, (heads, width) in sizes.items():
            of_keys = name in ("key", "value")
            if packed:
                steps = np.cumsum([0, *(pair[of_keys] for pair in packed)])
                x = rng.standard_normal((steps[-1], heads, width))
            else:
                tokens = self.keys if of_keys else self.queries
                x = rng.standard_normal((N, heads, tokens, width))
            dtype = self.of_keys if of_keys and self.of_keys else self.dtype
            if name == "d_lse":
                x, dtype = x[..., 0], "float64" if dtype == "float64" else "float32"
            x = x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
            made[name] = Ragged(x, steps) if packed else x
        return made

    def called(self) -> dict[str, Any]:
        """Options of the call."""
        n, queries, keys = N, self.queries, self.keys
        if self.packed:
            n = len(self.lengths)
            queries, keys = (max(x) for x in zip(*self.lengths, strict=True))
        options = drawn_options(self.random, (n, self.heads, queries, keys), list(self.has))
        options |= self.options
        if "lengths" in self.has and self.packed:
            options["key_lengths"] = np.array([max(0, k - 3) for _, k in self.lengths])
        if self.key_heads != self.heads:
            options["enable_gqa"] = True
        return options


def cut_mask(problem: Problem, options: dict[str, Any], ranks: Communicator, sharding: Any) -> Any:
    """The rows of a mask that a rank holds; those of packed sequences and shared ones are whole."""
    mask = options.get("attn_mask")
    if mask is None or problem.packed or mask.shape[-2] == 1:
        return mask
    return shard(mask, ranks, -2, sharding)


def solve(
    ranks: Communicator,
    problem: Problem,
    sharding: Any,
    scheme: str = "ring",
    ring: Communicator | None = None,
) -> Results:
    """This rank's results and gradients; of a mesh, `ring` is the outer dimension."""
    forward, backward = SCHEMES[scheme]
    arrays, options = problem.arrays(), problem.called()
    mesh: dict[str, Any] = {} if ring is None else {"ring": ring}
    ways = [(ranks, sharding)] if ring is None else [(ring, sharding), (ranks, "contiguous")]
    cut = dict(arrays)
    for of, how in ways:
        cut = {name: shard(x, of, -1 if name == "d_lse" else -2, how) for name, x in cut.items()}
        options["attn_mask"] = cut_mask(problem, options, of, how)
    out, lse, cache = forward(
        cut["query"], cut["key"], cut["value"], communicator=ranks, sharding=sharding,
        return_lse=True, return_cache=True, **mesh, **options,
    )  # fmt: skip
    found = backward(
        cut["d_out"], cache, need_mask_grad=True, need_sink_grad=True, d_lse=cut["d_lse"]
    )
    given = (out, lse, *found)
    return {
        name: x.values if isinstance(x, Ragged) else x
        for name, x in zip(OUTPUTS + GRADIENTS, given, strict=True)
        if x is not None
    }


def whole(problem: Problem) -> Results:
    """What one process computes."""
    arrays, options = problem.arrays(), problem.called()
    out, lse, cache = functional.scaled_dot_product_attention(
        arrays["query"], arrays["key"], arrays["value"], return_lse=True, return_cache=True,
        **options,
    )  # fmt: skip
    found = functional.scaled_dot_product_attention_backward(
        arrays["d_out"], cache, need_mask_grad=True, need_sink_grad=True, d_lse=arrays["d_lse"]
    )
    given = (out, lse, *found)
    return {
        name: x.values if isinstance(x, Ragged) else x
        for name, x in zip(OUTPUTS + GRADIENTS, given, strict=True)
        if x is not None
    }


def sizes(problem: Problem, expected: Results) -> dict[str, float]:
    """How large gradients would be if their terms did not cancel: those of the sinks do."""
    if "sinks" not in expected:
        return {}
    arrays, rows, tokens = problem.arrays(), expected["lse"].astype(np.float64), -1
    d_out, d_lse = (arrays[name] for name in ("d_out", "d_lse"))
    if problem.packed:
        d_out, d_lse, rows, tokens = d_out.values, d_lse.values, rows.T, 1
    delta = (d_out.astype(np.float64) * expected["out"]).sum(-1) - d_lse
    delta = delta.T if problem.packed else delta
    with np.errstate(over="ignore"):
        shares = np.exp(problem.called()["sinks"][:, None] - rows)
    terms = np.abs(np.where(np.isneginf(rows), 0.0, shares) * delta)
    return {"sinks": float(terms.sum(axis=tokens).max())}


def held(length: int, rank: int, mesh: tuple[int, int], sharding: Any) -> Any:
    """Positions on a rank of a mesh (rings, heads); ranks of one row of heads follow each other."""
    rings, size = mesh
    if rings == 1:
        return positions(length, rank, size, sharding)
    of_ring = positions(length, rank // size, rings, sharding)
    return of_ring[positions(len(of_ring), rank % size, size)]


def together(problem: Problem, sharding: Any, parts: Sequence[Results], rings: int = 1) -> Results:
    """Put the ranks' results into one; what is the same on all ranks has to be."""
    size, found = len(parts), {}
    mesh = (rings, size // rings)
    options = problem.called()
    for name in parts[0]:
        given = [part[name] for part in parts]
        of_keys = name in ("key", "value")
        shared = name == "sinks" or (
            name == "mask" and (problem.packed or options["attn_mask"].shape[-2] == 1)
        )
        if shared:
            assert all(x.tobytes() == given[0].tobytes() for x in given), name
            found[name] = given[0]
        elif problem.packed:
            lengths = [pair[of_keys] for pair in problem.lengths]
            into = np.empty((sum(lengths), *given[0].shape[1:]), given[0].dtype)
            for rank, x in enumerate(given):
                places = [held(n, rank, mesh, sharding) for n in lengths]
                firsts = np.cumsum([0, *lengths])
                into[np.concatenate([p + f for p, f in zip(places, firsts, strict=False)])] = x
            found[name] = into
        else:
            axis = -1 if name == "lse" else -2
            tokens = problem.keys if of_keys else problem.queries
            pieces = np.concatenate([np.moveaxis(x, axis, 0) for x in given])
            order = np.concatenate([held(tokens, r, mesh, sharding) for r in range(size)])
            into = np.empty_like(pieces)
            into[order] = pieces
            found[name] = np.moveaxis(into, 0, axis)
    return found


PACKED = ((37, 45), (1, 3), (0, 5), (64, 64))
PROBLEMS = [
    Problem(),
    Problem(("causal",), key_heads=2),
    Problem(("causal", "dropout"), 70, 130),
    Problem(("window", "mask")),
    Problem(("causal", "window", "offset", "mask", "sinks"), key_heads=1),
    Problem(("offset", "lengths", "softcap", "alibi")),
    Problem(("lengths", "sinks", "mask", "dropout"), 130, 70),
    Problem(("causal",), 3, 3),
    Problem(("sinks",), 1, 300),
    Problem(("causal", "window", "softcap", "alibi", "sinks", "dropout"), dtype="float64"),
    Problem(("causal", "sinks", "dropout"), dtype="bfloat16", key_heads=2),
    Problem(("window",), dtype="float16"),
    Problem(("causal", "sinks", "mask"), heads=6, key_heads=2),
    Problem(("causal", "alibi"), heads=6, key_heads=2, lengths=PACKED),
    Problem(("causal",), of_keys="bfloat16"),
    Problem(("causal", "dropout"), lengths=PACKED),
    Problem(("window", "lengths", "alibi", "sinks", "mask"), lengths=PACKED, key_heads=2),
    Problem(lengths=((50, 60),), dtype="bfloat16"),
    Problem(options={"attn_mask": np.linspace(-1, 1, 131, dtype=np.float32)[None, :]}),
    Problem(options={"attn_mask": np.linspace(-1, 1, 117, dtype=np.float32)[:, None]}),
]
