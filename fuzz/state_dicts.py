"""State dicts of layers: what fits is taken in, all else changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

import multihead as mh
import net_draws
from fuzz import hostile, judge, layer_calls
from fuzz.draws import Draws
from multihead.arrays import encode


def floats(x: Any) -> bool:
    """Whether something is an array of floats, bfloat16's among them."""
    return (
        isinstance(x, np.ndarray)
        and not isinstance(x, np.ma.MaskedArray)
        and (x.dtype.kind == "f" or x.dtype == layer_calls.BFLOAT16)
    )


def fits(layer: mh.MultiheadAttention, state: Any) -> bool:
    """Whether a layer should take a state."""
    own = layer.state_dict()
    return set(state) == set(own) and all(
        floats(x) and x.shape == own[name].shape for name, x in state.items()
    )


def spoil(draws: Draws, layer: mh.MultiheadAttention, state: dict[str, Any]) -> Any:
    """Change something of a state."""
    own = layer.parameters()
    names = [x for x in own if floats(state.get(x))]  # spoiled before, some are not
    if not names:
        return state
    name = draws.choice(names)
    way = draws.integers(9)
    if way == 0:
        state.pop(name)
    elif way == 1:
        state[draws.choice(["sinks", "bias_k", "in_proj_bias", "", "out_proj", 3, None])] = state[
            name
        ]
    elif way == 2:
        state[name] = hostile.arrays_of(draws, state[name])
    elif way == 3:
        state[name] = hostile.anything(draws)
    elif way == 4:  # arrays of the layer's own, some in another's place
        other = draws.choice(names)
        state[name], state[other] = own[other], own[name]
    elif way == 5:
        state[name] = own[name][::-1]
    elif way == 6:
        dtype = draws.choice(["float16", "float32", "float64", ">f4", ">f2", layer_calls.BFLOAT16])
        if state[name].nbytes <= hostile.LARGEST:
            state[name] = state[name].astype(dtype)
    elif way == 7:
        state[name] = hostile.placed(draws, state[name])
    else:
        return hostile.anything(draws)
    return state


def one(draws: Draws) -> None:
    """One input."""
    dtype = draws.choice(layer_calls.DTYPES)
    made = layer_calls.draw_options(draws, dtype)
    layer = mh.MultiheadAttention(**made, dtype=dtype, seed=0)
    state: Any = {
        name: net_draws.normal(draws, x.shape, np.dtype(x.dtype))
        for name, x in layer.state_dict().items()
    }
    for _ in range(draws.integers(3)):
        if isinstance(state, dict) and state:
            state = spoil(draws, layer, state)
    shown = (
        {k: getattr(x, "dtype", x) for k, x in state.items()} if isinstance(state, dict) else state
    )
    judge.show(made, dtype, shown)
    good = isinstance(state, dict) and fits(layer, state)
    given = (
        [x for x in state.values() if isinstance(x, np.ndarray)] if isinstance(state, dict) else []
    )
    own = [*layer.parameters().values(), *layer.grads.values()]
    ours = {id(x) for x in own}
    apart = [x for x in given if not any(np.may_share_memory(x, y) for y in own)]
    if not good:
        return judge.must_refuse(lambda: layer.load_state_dict(state), [*own, *apart], "a state")
    before = {name: np.array(x) for name, x in state.items()}
    kept = judge.Kept([*apart, *layer.grads.values()])
    layer.load_state_dict(state)
    kept.expect("after a state was taken")
    for name, x in layer.state_dict().items():
        wanted = before[name].astype(np.float64)
        bits = layer.dtype == "bfloat16"
        cast = encode(wanted.astype(np.float32), x.dtype, True) if bits else None
        if cast is None:
            cast = wanted.astype(x.dtype)
        judge.expect(judge.bits([x]) == judge.bits([cast]), f"{name} is not what was given")
    del ours
    name = draws.choice([*before, "sinks", "bias_k", "in_proj_weight", "q_proj_weight"])
    new = hostile.arrays_of(draws, before[name]) if name in before else hostile.anything(draws)
    target = layer.out_proj if name.startswith("out_proj.") else layer
    field = name.removeprefix("out_proj.")
    judge.show("assign", name, repr(new)[:100])
    try:
        fine = name in before and fits(layer, before | {name: new})
        fine |= name not in before and new is None
        kept = judge.Kept([*layer.parameters().values(), *layer.grads.values()])
        setattr(target, field, new)
    except judge.CLEAN as why:
        judge.expect(str(why) and not fine, f"{name}: refused what fits: {why}")
        kept.expect(f"after {why}")
    else:
        judge.expect(fine, f"{name}: took what does not fit")
    return None
