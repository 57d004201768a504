"""Layers whose sequences are sharded: made alike on every rank, and called on its part."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

import multihead as mh
from multihead import Ragged
from multihead.distributed import ContextParallel

Results = dict[str, Any]

TABLE = np.linspace(0, 300, 200 * 5).reshape(200, 5)
OPTIONS: dict[str, dict[str, Any]] = {
    "bias_kv": {"add_bias_kv": True},
    "zero": {"add_zero_attn": True},
    "no_bias": {"bias": False},
    "widths": {"kdim": 11, "vdim": 13},
    "gqa": {"num_kv_heads": 2, "head_dim": 10},
    "window": {"window": (30, 9)},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi": True},
    "sinks": {"sinks": True},
    "rope": {"rope": mh.Rope(500.0, 4, "interleaved")},
    "table": {"rope": (np.cos(TABLE)[:, :3], np.sin(TABLE)[:, :3])},
    "dropout": {"dropout": 0.3},
}


def stored(dtype: str) -> Any:
    return ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)


@dataclass(frozen=True)
class Problem:
    """A layer and a call of it, by what they have.

    `has` are names of `OPTIONS`, and of masks: padding, added_padding, mask, added_mask, head_mask,
    row_mask, causal. `form` is that of the inputs.
    """

    has: tuple[str, ...] = ()
    form: str = "batch_first"  # or tokens_first, unbatched, ragged
    queries: int = 57
    keys: int = 71
    batch: int = 2
    heads: int = 4
    dtype: str = "float32"
    of_inputs: str = ""  # another dtype of theirs
    lengths: tuple[tuple[int, int], ...] = ()
    made: dict[str, Any] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        told = [*self.has, self.form, self.dtype + self.of_inputs, f"{self.queries}x{self.keys}"]
        return "-".join([*told, f"{self.heads}heads", *self.made])

    @property
    def random(self) -> np.random.Generator:
        return np.random.default_rng(zlib.crc32(str(self).encode()))

    @property
    def axis(self) -> int:
        """Of tokens."""
        return 1 if self.form == "batch_first" else 0

    def layer(self) -> mh.MultiheadAttention:
        """The layer, with random parameters."""
        options: dict[str, Any] = {}
        for name in self.has:
            options |= OPTIONS.get(name, {})
        options |= self.made
        layer = mh.MultiheadAttention(
            24, self.heads, batch_first=self.form == "batch_first", dtype=self.dtype, seed=7,
            **options,
        )  # fmt: skip
        rng = self.random
        for parameter in layer.parameters().values():
            drawn = rng.normal(size=parameter.shape) / np.sqrt(parameter.shape[-1])
            parameter[...] = drawn.astype(parameter.dtype)
        return layer

    def arrays(self) -> Results:
        """Inputs and gradient of the output, whole."""
        rng, layer = self.random, self.layer()
        made: Results = {}
        sizes = (("query", 0, 24), ("key", 1, layer.kdim), ("value", 1, layer.vdim))
        for name, of_keys, width in (*sizes, ("d_out", 0, 24)):
            tokens = self.keys if of_keys else self.queries
            shape: tuple[int, ...] = {
                "batch_first": (self.batch, tokens, width),
                "tokens_first": (tokens, self.batch, width),
            }.get(self.form, (tokens, width))
            steps = np.cumsum([0, *(pair[of_keys] for pair in self.lengths)])
            if self.form == "ragged":
                shape = (int(steps[-1]), width)
            x = rng.normal(size=shape).astype(stored(self.of_inputs or self.dtype))
            made[name] = Ragged(x, steps) if self.form == "ragged" else x
        if "one" in self.has:
            made["key"] = made["value"] = made["query"]
        return made

    def masks(self) -> Results:
        """Masks, whole."""
        rng, n, h = self.random, self.batch, self.heads
        pairs = self.lengths or ((self.queries, self.keys),)
        length, s = (max(x) for x in zip(*pairs, strict=True))
        if self.form in ("unbatched", "ragged"):
            n = len(self.lengths) or 1
        columns = (s,) if self.form == "unbatched" else (n, s)
        floats = self.dtype if self.dtype != "bfloat16" else "float32"
        of_attn = {
            "mask": lambda: rng.random((length, s)) < 0.4,
            "head_mask": lambda: rng.random((n * h, length, s)) < 0.4,
            "added_mask": lambda: rng.normal(size=(n, 1, length, s)).astype(floats),
            "row_mask": lambda: rng.normal(size=(1, h, 1, s)).astype(floats),
            "flat_mask": lambda: rng.normal(size=(length, s)).astype(floats),
        }
        of_padding: dict[str, Callable[[], np.ndarray]] = {
            "padding": lambda: rng.random(columns) < 0.3,
            "added_padding": lambda: np.where(
                rng.random(columns) < 0.2, -np.inf, rng.normal(size=columns)
            ).astype(floats),
        }
        masks: Results = {}
        for argument, known in (("attn_mask", of_attn), ("key_padding_mask", of_padding)):
            for name in set(known) & set(self.has):
                masks[argument] = known[name]()
        return masks


def cut(problem: Problem, parallel: ContextParallel) -> tuple[Results, Results]:
    """This rank's inputs and masks."""
    arrays = {name: parallel.shard(x, problem.axis) for name, x in problem.arrays().items()}
    if "one" in problem.has:
        arrays["key"] = arrays["value"] = arrays["query"]
    return arrays, cut_masks(problem, parallel, problem.masks())


def cut_masks(problem: Problem, parallel: ContextParallel, masks: Results) -> Results:
    """Rows of this rank's queries and its columns of padding, of masks or of their gradients."""
    masks = dict(masks)
    mask, padding = masks.get("attn_mask"), masks.get("key_padding_mask")
    if mask is not None and mask.shape[-2] > 1 and problem.form != "ragged":
        masks["attn_mask"] = parallel.shard(mask, -2)
    if padding is not None:
        masks["key_padding_mask"] = parallel.shard(padding, -1)
    return masks


def solve(problem: Problem, parallel: ContextParallel) -> Results:
    """Outputs and gradients on this rank."""
    attention = problem.layer().parallel(parallel)
    arrays, masks = cut(problem, parallel)
    return answers(problem, attention, arrays, masks)


def whole(problem: Problem) -> Results:
    """What one process computes."""
    return answers(problem, problem.layer(), problem.arrays(), problem.masks())


def exact(problem: Problem) -> Results:
    """What one process computes in float64 of the same numbers."""
    layer = problem.layer()
    options = layer.options() | {"dtype": "float64", "grad_dtype": None}
    wide = mh.MultiheadAttention(**options, seed=7)
    wide.load_state_dict(layer.state_dict())
    arrays = {
        name: Ragged(x.values.astype("f8"), x.offsets) if isinstance(x, Ragged) else x.astype("f8")
        for name, x in problem.arrays().items()
    }
    masks = {name: x if x.dtype == bool else x.astype("f8") for name, x in problem.masks().items()}
    return answers(problem, wide, arrays, masks)


def answers(problem: Problem, attention: Any, arrays: Results, masks: Results) -> Results:
    """Two calls and their gradients, so that gradients add up and dropout is drawn anew."""
    found: Results = {}
    for _ in range(2):
        out, _ = attention(
            arrays["query"], arrays["key"], arrays["value"], need_weights=False,
            is_causal="causal" in problem.has, **masks,
        )  # fmt: skip
        gradients = attention.backward(arrays["d_out"], need_mask_grad=True)
        names = ("query", "key", "value", "attn_mask", "key_padding_mask")
        found = {"out": out, **dict(zip(names, gradients, strict=True))}
    found |= {f"grads.{name}": x.copy() for name, x in attention.grads.items()}
    return {name: x for name, x in found.items() if x is not None}


def part_of(problem: Problem, parallel: ContextParallel, expected: Results) -> Results:
    """What of one process's results this rank has."""
    part = dict(expected)
    for name in ("out", "query", "key", "value"):
        part[name] = parallel.shard(expected[name], problem.axis)
    return cut_masks(problem, parallel, part)


PACKED = ((37, 45), (1, 3), (5, 2), (40, 40))
PROBLEMS = [
    Problem(),
    Problem(("one", "causal", "rope"), keys=57),
    Problem(("gqa", "rope", "dropout", "causal", "window"), "tokens_first"),
    Problem(("bias_kv", "zero", "sinks", "padding"), "tokens_first"),
    Problem(("bias_kv", "dropout", "causal", "softcap", "gqa")),
    Problem(("zero", "dropout", "mask", "padding"), "unbatched"),
    Problem(("widths", "no_bias", "head_mask", "added_padding", "alibi")),
    Problem(("added_mask", "added_padding", "softcap", "sinks", "zero")),
    Problem(("row_mask", "padding", "table", "alibi"), "tokens_first"),
    Problem(("flat_mask", "added_padding", "bias_kv", "widths", "window")),
    Problem(("one", "added_padding", "bias_kv", "alibi", "rope", "window", "causal"), keys=57),
    Problem(("gqa", "causal", "dropout", "rope", "bias_kv"), "ragged", lengths=PACKED),
    Problem(("window", "alibi", "sinks", "zero", "flat_mask"), "ragged", lengths=PACKED),
    Problem(("sinks", "bias_kv", "zero", "dropout", "rope"), heads=6, dtype="float64"),
    Problem(("causal", "gqa"), queries=3, keys=5, batch=1),
    Problem(("bias_kv", "padding", "causal", "rope"), dtype="bfloat16"),
    Problem(("one", "causal", "dropout"), keys=57, dtype="float16"),
    Problem(("zero", "gqa", "rope"), of_inputs="bfloat16"),
    Problem(("padding",), dtype="bfloat16", made={"grad_dtype": "bfloat16"}),
]
