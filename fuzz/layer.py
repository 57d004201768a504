"""The layer on NumPy arrays: forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np

import multihead as mh
from fuzz import hostile, judge, layer_calls
from fuzz.draws import Draws
from fuzz.layer_calls import BFLOAT16, Call, Expected
from tolerance import FORWARD, GRADIENT

NAMES = ("query", "key", "value")


class Given:
    """A layer and the arguments of a call in its layout; what is one array stays one."""

    def __init__(self, draws: Draws, call: Call) -> None:
        self.call = call
        self.layout = draws.choice(["batch first", "tokens first", "unbatched"])
        if self.layout == "unbatched" and call.sizes[0] != 1:
            self.layout = "batch first"
        self.layer = mh.MultiheadAttention(
            **call.made, batch_first=self.layout == "batch first", dtype=call.dtype, seed=0
        )
        self.layer.load_state_dict(call.params)
        self.layer.rng_state = (draws.word(), draws.integers(2**40))
        self.state = self.layer.rng_state
        found: dict[int, Any] = {}
        for x in call.inputs:
            if id(x) not in found:
                found[id(x)] = hostile.placed(draws, self.to_layout(x))
        self.inputs = [found[id(x)] for x in call.inputs]
        self.options = dict(call.options)
        for name in ("attn_mask", "key_padding_mask"):
            if name in self.options:
                mask = self.options[name]
                batched = self.layout != "unbatched" or name == "attn_mask"
                self.options[name] = hostile.placed(draws, mask if batched else mask[0])
        self.d_out = hostile.placed(draws, self.to_layout(call.d_out))
        self.d_weights = call.d_weights
        if self.d_weights is not None:
            d = self.d_weights[0] if self.layout == "unbatched" else self.d_weights
            self.d_weights = hostile.placed(draws, d)

    def to_layout(self, x: Any) -> Any:
        """(N, tokens, width) as the layer has it."""
        if self.layout == "unbatched":
            return x[0]
        return x if self.layout == "batch first" else np.ascontiguousarray(x.swapaxes(0, 1))

    def from_layout(self, x: Any) -> Any:
        """And back."""
        if self.layout == "unbatched":
            return x[None]
        return x if self.layout == "batch first" else x.swapaxes(0, 1)

    @property
    def arrays(self) -> list[Any]:
        """All arrays that the call is given, and the parameters."""
        masks = [self.options.get(x) for x in ("attn_mask", "key_padding_mask")]
        own = [*self.layer.parameters().values()]
        return [
            x for x in (*self.inputs, *masks, self.d_out, self.d_weights, *own) if x is not None
        ]


def step(given: Given, out: Any = None) -> tuple[Any, Any, dict[str, Any]]:
    """Forward and backward from the first state: output, weights and gradients by name."""
    layer = given.layer
    layer.zero_grad()
    layer.rng_state = given.state
    made, weights = layer(*given.inputs, **given.options)
    *d_inputs, d_mask, d_padding = layer.backward(
        given.d_out, given.d_weights, out=out, need_mask_grad=True
    )
    grads: dict[str, Any] = {}
    shown = layer.dtype == "bfloat16"
    for name, x in layer.grads.items():
        grads[name] = x.view(BFLOAT16) if shown and x.dtype == np.uint16 else x.copy()
    for name, x in zip(("attn_mask", "key_padding_mask"), (d_mask, d_padding), strict=True):
        if x is not None:
            grads[name] = x
    grads |= {
        name: given.from_layout(x) for name, x in zip(NAMES, d_inputs, strict=True) if x is not None
    }
    return made, weights, grads


def right(draws: Draws, given: Given) -> None:
    """A call that is right has the oracle's numbers."""
    call, layer = given.call, given.layer
    kept = judge.Kept(given.arrays)
    out = None
    if draws.flip(0.3):
        out, given.layer.batch_first = _outputs(draws, given), layer.batch_first
    made, weights, grads = step(given, out)
    kept.expect("after a step")
    expected = layer_calls.oracle(call, given.state)
    wanted = dict(expected.grads)
    worst = _worst(given)
    judge.near(given.from_layout(made), expected.out, FORWARD, worst, "out", scale=1)
    judge.expect((weights is None) == (expected.weights is None), "weights come where wanted")
    if weights is not None:
        shown = weights[None] if given.layout == "unbatched" else weights
        judge.near(shown, expected.weights, FORWARD, worst, "weights", scale=0.1)
    if "key_padding_mask" in wanted and given.layout == "unbatched":
        wanted["key_padding_mask"] = wanted["key_padding_mask"][0]
    if out is not None:
        _summed(given, out, grads, wanted)
    judge.all_near(grads, wanted, GRADIENT, worst, expected.sizes)
    counter = given.state[1] + (1 if call.made["dropout"] else 0)
    judge.expect(layer.rng_state == (given.state[0], counter), "rng_state")
    if draws.flip(0.2):

        def run() -> list[Any]:
            made, weights, grads = step(given)
            return [made, weights, *(grads[name] for name in sorted(grads))]

        judge.same_bits(draws, run, call.dtype == BFLOAT16)


def _worst(given: Given) -> Any:
    types = [given.call.dtype]
    for name in ("attn_mask", "key_padding_mask"):
        mask = given.options.get(name)
        if mask is not None and mask.dtype.kind == "f":
            types.append(mask.dtype.newbyteorder("="))
    names = ("bfloat16", "float16", "float32", "float64")
    return min(types, key=lambda x: names.index(x.name))


def _outputs(draws: Draws, given: Given) -> tuple[Any, ...]:
    """Arrays for gradients: some missing, some one for several."""
    made: list[Any] = []
    for x in given.inputs:
        twin = next((y for y in made if y is not None and y.shape == x.shape), None)
        if twin is not None and draws.flip():
            made.append(twin)
        elif draws.flip(0.15):
            made.append(None)
        else:
            made.append(np.full(x.shape, 7, x.dtype.newbyteorder("=")))
    return tuple(made)


def _summed(given: Given, out: Any, grads: dict[str, Any], wanted: dict[str, Any]) -> None:
    """What was given for several has the sum of them."""
    total: dict[int, Any] = {}
    for name, x in zip(NAMES, out, strict=True):
        if x is not None:
            total[id(x)] = total.get(id(x), 0) + wanted[name]
    for name, x in zip(NAMES, out, strict=True):
        wanted.pop(name) if x is None else wanted.__setitem__(name, total[id(x)])


def wrong(draws: Draws, given: Given) -> None:
    """A call with one argument in another's place is refused, or harmless."""
    layer, call = given.layer, given.call
    arguments = dict(zip(NAMES, given.inputs, strict=True)) | given.options
    name = draws.choice([*NAMES, "attn_mask", "key_padding_mask", *given.options, "kv_cache"])
    old = arguments.get(name)
    arrays = isinstance(old, np.ndarray)
    new = hostile.arrays_of(draws, old) if arrays else hostile.anything(draws)
    arguments[name] = new
    judge.show("wrong:", name, repr(new)[:200])
    keep = [*given.arrays, *(x for x in (new, *layer.grads.values()) if isinstance(x, np.ndarray))]
    before = layer.rng_state
    certain = name in NAMES and not (
        isinstance(new, np.ndarray) and new.shape == old.shape and new.dtype.kind in "fV"
    )
    certain |= name == "kv_cache" and new is not None
    if judge.refused(lambda: layer(**arguments), keep) is not None:
        judge.expect(layer.rng_state == before, "an error drew dropout")
    elif certain:
        raise judge.Found(f"{name} was taken")
    layer(*given.inputs, **given.options)
    what = draws.choice(["d_out", "d_weights", "cache", "out", "need_mask_grad"])
    old = {"d_out": given.d_out, "d_weights": given.d_weights}.get(what)
    arrays = isinstance(old, np.ndarray) and draws.flip(0.8)
    new = hostile.arrays_of(draws, old) if arrays else hostile.anything(draws)
    if what == "out" and draws.flip(0.8):
        new = _wrong_outputs(draws, given)
    how = {"d_out": given.d_out} | {what: new}
    judge.show("wrong:", what, repr(new)[:200])
    keep = [*given.arrays, *layer.grads.values()]
    if judge_backward(layer, how, keep, new, what) and what in ("d_out", "cache") and not arrays:
        judge.expect(what == "cache" and new is None, f"{what} was taken: {new!r}")
    del call


def judge_backward(layer: Any, how: dict[str, Any], keep: Any, new: Any, what: str) -> bool:
    """Whether backward took arguments that may be wrong; gradients of parameters then change."""
    kept = judge.Kept(
        [*keep, *(x for x in (new if what == "out" and isinstance(new, tuple) else ()))]
    )
    try:
        layer.backward(**how)
    except judge.CLEAN as why:
        judge.expect(str(why).strip(), f"{type(why).__name__} says nothing")
        kept.expect(f"after {type(why).__name__}: {why}")
        return False
    return True


def _wrong_outputs(draws: Draws, given: Given) -> tuple[Any, ...]:
    made = list(_outputs(draws, given))
    i = draws.integers(3)
    x = given.inputs[draws.integers(3)]
    made[i] = draws.choice(
        [
            x,
            given.d_out,
            x[::-1] if x.ndim else x,
            np.broadcast_to(np.zeros((), x.dtype), x.shape),
            np.zeros((*x.shape, 2), x.dtype),
            next(iter(given.layer.parameters().values())),
            next(iter(given.layer.grads.values())),
            hostile.anything(draws),
        ]
    )
    return tuple(made)


def construct(draws: Draws, call: Call) -> None:
    """A constructor with an argument in another's place refuses it, or makes a layer that works."""
    made = dict(call.made)
    names = [
        *made,
        "window",
        "softcap",
        "rope",
        "dtype",
        "device",
        "seed",
        "grad_dtype",
        "head_dim",
    ]
    name = draws.choice([*names, "num_kv_heads", "alibi", "sinks", "batch_first"])
    made[name] = hostile.anything(draws)
    judge.show("constructor:", name, repr(made[name])[:100])
    sizes = {"embed_dim", "num_heads", "kdim", "vdim", "head_dim", "num_kv_heads"}
    if name in sizes and isinstance(made[name], int) and 10**6 < made[name] < 2**62:
        return  # memory that the system may well promise
    layer: list[Any] = []
    if judge.refused(lambda: layer.append(mh.MultiheadAttention(**made)), []) is None:
        repr(layer[0])
        layer[0].state_dict()


def huge(draws: Draws) -> None:
    """Arrays that fit a layer and no memory are refused at once."""
    size, dtype = draws.choice([2**33, 2**40, 2**46]), draws.choice(["float32", "float16"])
    layer = mh.MultiheadAttention(4, 2, batch_first=True, dtype=dtype, seed=0)
    one = np.ones((), dtype)
    big = np.broadcast_to(one, draws.choice([(1, size, 4), (max(size, 2**40), 1, 4)]))
    query = big if draws.flip() or big.shape[0] > 1 else np.broadcast_to(one, (1, 2, 4))
    judge.must_refuse(lambda: layer(query, big, big, need_weights=draws.flip()), [one], "huge")


def one(draws: Draws) -> None:
    """One input."""
    way = draws.integers(32)
    if way == 0:
        return huge(draws)
    call = layer_calls.draw(draws)
    if way < 4:
        return construct(draws, call)
    given = Given(draws, call)
    judge.show(call.made, call.sizes, call.dtype, given.layout, list(call.options))
    return right(draws, given) if way < 22 else wrong(draws, given)


__all__ = ["Expected", "one"]
