"""The torch module, forward and through autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import net_draws
from fuzz import hostile, judge, layer, layer_calls
from fuzz.draws import Draws
from fuzz.kv_caches import to_numpy, to_torch
from fuzz.layer_calls import BFLOAT16, Call
from multihead.torch import MultiheadAttention
from tolerance import FORWARD, GRADIENT

# what PyTorch itself raises where it has something to say
CLEAN = (*judge.CLEAN, RuntimeError, AssertionError)
TYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16}
TYPES |= {"bfloat16": torch.bfloat16}


def placed(draws: Draws, x: torch.Tensor) -> torch.Tensor:
    """The same values, perhaps in memory that is not contiguous."""
    way = draws.integers(6)
    if x.dim() == 0 or way > 3:
        return x
    if way == 0:
        room = torch.zeros(*x.shape[:-1], 2 * x.shape[-1] + 1, dtype=x.dtype)
        view = room[..., 1::2]
    elif way == 1:
        view = torch.zeros(*x.shape[:-1], x.shape[-1] + 3, dtype=x.dtype)[..., : x.shape[-1]]
    elif way == 2:
        view = torch.zeros(*x.shape[::-1], dtype=x.dtype).permute(*range(x.dim())[::-1])
    else:
        return x[:1].expand(x.shape) if x.shape[0] == 1 else x
    view.copy_(x)
    return view


class Given:
    """A module and the arguments of a call in its layout."""

    def __init__(self, draws: Draws, call: Call) -> None:
        self.call, dtype = call, TYPES[call.dtype.name]
        self.batch_first = draws.flip()
        made = call.made | {"dropout": 0.0}
        self.module = MultiheadAttention(**made, batch_first=self.batch_first, dtype=dtype)
        self.module.load_state_dict({k: to_torch(x) for k, x in call.params.items()})
        self.module.train(draws.flip(0.85))
        self.unbatched = call.sizes[0] == 1 and draws.flip(0.2)
        made_once: dict[int, torch.Tensor] = {}
        for x in call.inputs:
            if id(x) not in made_once:
                made_once[id(x)] = placed(draws, self.to_layout(to_torch(x)))
        wanted = draws.flip(0.8)
        for x in made_once.values():
            x.requires_grad_(wanted)
        self.inputs = [made_once[id(x)] for x in call.inputs]
        self.options = dict(call.options)
        self.masks: dict[str, torch.Tensor] = {}
        for name in ("attn_mask", "key_padding_mask"):
            if name in self.options:
                mask = self.options[name]
                if self.unbatched and name == "key_padding_mask":
                    mask = mask[0]
                tensor = placed(draws, to_torch(mask))
                if tensor.dtype != torch.bool and draws.flip():
                    tensor.requires_grad_()
                self.options[name] = self.masks[name] = tensor
        self.d_out = placed(draws, self.to_layout(to_torch(call.d_out)))
        self.d_weights = None if call.d_weights is None else to_torch(call.d_weights)
        if self.unbatched and self.d_weights is not None:
            self.d_weights = self.d_weights[0]

    def to_layout(self, x: torch.Tensor) -> torch.Tensor:
        """(N, tokens, width) as the module has it."""
        if self.unbatched:
            return x[0]
        return x if self.batch_first else x.transpose(0, 1).contiguous()

    def from_layout(self, x: torch.Tensor) -> Any:
        """And back, as NumPy's."""
        x = x[None] if self.unbatched else x if self.batch_first else x.transpose(0, 1)
        return to_numpy(x)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All tensors that the call is given."""
        return [*self.inputs, *self.masks.values(), self.d_out, *self.module.parameters()]


def fitting(call: Call) -> Call:
    """Masks as PyTorch takes them: of one dtype, and of that of the inputs where they are float."""
    options = dict(call.options)
    found = [x for x in ("attn_mask", "key_padding_mask") if x in options]
    if len(found) == 2 and (options[found[0]].dtype == bool) != (options[found[1]].dtype == bool):
        options.pop("key_padding_mask")
    for name in found:
        if name in options and options[name].dtype != bool:
            options[name] = options[name].astype(call.dtype)
    return call._replace(options=options)


def step(given: Given) -> tuple[Any, Any, dict[str, Any]]:
    """Output, weights and gradients by name."""
    module = given.module
    leaves = {id(x): x for x in [*given.inputs, *given.masks.values(), *module.parameters()]}
    for x in leaves.values():
        x.grad = None
    out, weights = module(*given.inputs, **given.options)
    if out.requires_grad:
        roots, grads = [out], [given.d_out]
        if weights is not None and given.d_weights is not None:
            roots, grads = [out, weights], [given.d_out, given.d_weights]
        torch.autograd.backward(roots, grads)
    found = {k: to_numpy(x.grad) for k, x in module.named_parameters() if x.grad is not None}
    for name, x in zip(layer.NAMES, given.inputs, strict=True):
        if x.grad is not None and all(x is not y for y in given.inputs[: layer.NAMES.index(name)]):
            found[name] = given.from_layout(x.grad)
    found |= {k: to_numpy(x.grad) for k, x in given.masks.items() if x.grad is not None}
    return out, weights, found


def right(draws: Draws, given: Given) -> None:
    """A call that is right has the oracle's numbers."""
    call = given.call._replace(made=given.call.made | {"dropout": 0.0})
    if given.d_weights is None:
        call = call._replace(d_weights=None)
    kept = judge.Kept(given.tensors)
    out, weights, found = step(given)
    kept.expect("after a step")
    expected = layer_calls.oracle(call, (0, 0))
    judge.near(given.from_layout(out), expected.out, FORWARD, call.dtype, "out", scale=1)
    if weights is not None:
        shown = to_numpy(weights[None] if given.unbatched else weights)
        judge.near(shown, expected.weights, FORWARD, call.dtype, "weights", scale=0.1)
    judge.expect((weights is None) == (expected.weights is None), "weights come where wanted")
    wanted = dict(expected.grads)
    q, k, v = given.inputs
    if v is k:
        wanted["key"] = wanted["key"] + wanted.pop("value")
    if k is q:
        wanted["query"] = wanted["query"] + wanted.pop("key")
    if "key_padding_mask" in wanted and given.unbatched:
        wanted["key_padding_mask"] = wanted["key_padding_mask"][0]
    leaves = [*layer.NAMES, "attn_mask", "key_padding_mask"]
    wanted = {k: x for k, x in wanted.items() if k in found or k not in leaves}
    judge.all_near(found, wanted, GRADIENT, call.dtype, expected.sizes)
    if draws.flip(0.2):

        def run() -> list[Any]:
            out, weights, grads = step(given)
            shown = [to_numpy(out), None if weights is None else to_numpy(weights)]
            return [*shown, *(grads[k] for k in sorted(grads))]

        judge.same_bits(draws, run, call.dtype == BFLOAT16)


def strange(draws: Draws, x: torch.Tensor) -> Any:
    """A tensor, or something else, in the place of another."""
    x = x.detach()
    options: list[Any] = [
        lambda: x[..., None],
        lambda: x[:1],
        lambda: torch.cat([x, x], -1),
        lambda: x.to(draws.choice([torch.int64, torch.bool, torch.complex64, torch.float64])),
        lambda: x.to(draws.choice([torch.float16, torch.bfloat16, torch.float32])),
        lambda: x.to("meta"),
        lambda: x.to_sparse() if x.dim() else x,
        lambda: x.transpose(0, -1) if x.dim() else x,
        lambda: torch.empty(0, dtype=x.dtype),
        lambda: torch.ones((), dtype=x.dtype).expand(2**20, 2**20, 2**20),
        lambda: hostile.anything(draws),
        lambda: x.numpy() if x.dtype != torch.bfloat16 else None,
    ]
    return draws.choice(options)()


def wrong(draws: Draws, given: Given) -> None:
    """A call with one argument in another's place is refused, or harmless."""
    arguments = dict(zip(layer.NAMES, given.inputs, strict=True)) | given.options
    name = draws.choice([*layer.NAMES, "attn_mask", "key_padding_mask", "kv_cache", *given.options])
    old = arguments.get(name)
    new = strange(draws, old) if isinstance(old, torch.Tensor) else hostile.anything(draws)
    arguments[name] = new
    judge.show("wrong", name, getattr(new, "shape", new), getattr(new, "dtype", ""))
    given_tensors = [x for x in given.tensors if x.layout == torch.strided]
    kept = judge.Kept(given_tensors)
    certain = name in layer.NAMES and not isinstance(new, torch.Tensor)
    try:
        given.module(**arguments)
    except CLEAN as why:
        judge.expect(str(why), f"{type(why).__name__} says nothing")
    except (
        AttributeError,
        NotImplementedError,
        IndexError,
    ):  # of tensors that PyTorch stumbles over
        judge.expect(not isinstance(old, torch.Tensor) or _from_torch(given, arguments), "unclean")
    else:
        judge.expect(not certain, f"{name} was taken")
    kept.expect("after a call that is wrong")


def _from_torch(given: Given, arguments: dict[str, Any]) -> bool:
    """Whether PyTorch's own layer raises, too."""
    made = given.call.made
    if any(
        x
        not in (
            "embed_dim",
            "num_heads",
            "bias",
            "add_bias_kv",
            "add_zero_attn",
            "dropout",
            "kdim",
            "vdim",
        )
        and y
        for x, y in made.items()
    ):
        return True
    theirs = torch.nn.MultiheadAttention(**made, batch_first=given.batch_first)
    theirs.to(TYPES[given.call.dtype.name])
    try:
        theirs(**arguments)
    except Exception:
        return True
    return False


def one(draws: Draws) -> None:
    """One input."""
    call = fitting(layer_calls.draw(draws))
    given = Given(draws, call)
    judge.show(call.made, call.sizes, call.dtype, list(call.options), given.unbatched)
    if call.sizes[0] == 0 or draws.flip(0.3):
        return wrong(draws, given)
    return right(draws, given)


__all__ = ["net_draws", "np", "one"]
