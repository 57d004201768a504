"""Whole models whose sequences are shared by ranks: `multihead.torch.parallel`."""

from __future__ import annotations

import sys
import threading
from typing import TypeVar

import torch

from multihead.checks import wrong, wrong_type
from multihead.distributed import Communicator, ContextParallel
from multihead.distributed.context_parallel import Scheme
from multihead.distributed.sharding import Sharding
from multihead.torch.callers import attending_modules
from multihead.torch.module import MultiheadAttention

_CHECKING = threading.Lock()  # CPython 3.11 reads no sources in several threads at once
Model = TypeVar("Model", bound=torch.nn.Module)


def parallel(
    model: Model,
    communicator: Communicator | None,
    *,
    scheme: Scheme = "ring",
    sharding: Sharding = "contiguous",
    ring: Communicator | None = None,
) -> Model:
    """Let every attention of a model see sequences of which each rank holds a part.

    The model then takes this rank's tokens and returns what it finds for them; all ranks call it
    together, and ``backward`` too.

    Parameters
    ----------
    model : torch.nn.Module
        With layers of ours (see `accelerate`), or Hugging Face's of text alone, after
        `register_transformers`. The latter take `input_ids` or `inputs_embeds`, an
        `attention_mask` (N, L_r) and `position_ids` of this rank's tokens; positions are made where
        they are not given.
    communicator : Communicator or None
        None: whole sequences again.
    scheme, sharding, ring
        As in `multihead.distributed.ContextParallel`.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    ValueError
        If the model has no such attention, or some of its modules attend, or mix tokens, in another
        way.
    TypeError
        If `model` is no module or a communicator is none.

    See Also
    --------
    MultiheadAttention.parallel : One layer.
    context_parallel_attention : The function, for modules of one's own.

    Examples
    --------
    >>> import copy
    >>> import torch
    >>> from multihead.distributed import threads
    >>> from multihead.torch import accelerate, parallel
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> accelerate(layer)
    1
    >>> def program(ranks):
    ...     own = parallel(copy.deepcopy(layer), ranks)
    ...     return tuple(own(torch.randn(1, 5, 8)).shape)
    >>> threads.run(2, program)
    [(1, 5, 8), (1, 5, 8)]
    """
    if not isinstance(model, torch.nn.Module):
        raise wrong_type("model", "a torch.nn.Module", type(model).__name__)
    shared = None
    if communicator is not None:
        shared = ContextParallel(communicator, scheme, sharding, ring)
    layers = [x for x in model.modules() if isinstance(x, MultiheadAttention)]
    theirs = _hugging_face_models(model)
    if shared is not None:
        if not layers and not theirs:
            way = "multihead.torch.accelerate(model) puts some in place of torch's"
            expected = f"a model with layers of multihead.torch ({way}), or Hugging Face's"
            raise wrong("model", expected, type(model).__name__)
        _refuse_others(model, theirs)
    if theirs:
        from multihead.torch import sharded_model

        with _CHECKING:
            for one in theirs:
                sharded_model.check(one, shared)
        for one in theirs:
            sharded_model.share(one, shared)
    for layer in layers:
        layer._parallel = shared
    return model


def _hugging_face_models(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the outermost models of transformers, where that is imported."""
    transformers = sys.modules.get("transformers")
    kind = getattr(transformers, "PreTrainedModel", None)
    if kind is None:
        return []
    found: list[torch.nn.Module] = []
    within: set[int] = set()
    for x in model.modules():
        if isinstance(x, kind) and id(x) not in within:
            found.append(x)
            within |= {id(y) for y in x.modules()}
    return found


def _refuse_others(model: torch.nn.Module, theirs: list[torch.nn.Module]) -> None:
    """Raise for modules that would attend to this rank's tokens alone."""
    within = {id(y) for x in theirs for y in x.modules()}
    for name, x in model.named_modules():
        if isinstance(x, torch.nn.MultiheadAttention) and not isinstance(x, MultiheadAttention):
            expected = "layers of multihead.torch alone (multihead.torch.accelerate(model))"
            raise wrong("model", expected, f"torch.nn.MultiheadAttention {name!r}")
    for found in attending_modules(model):
        if id(found.module) not in within:
            expected = "modules that attend with context_parallel_attention, or layer.parallel()"
            raise wrong("model", expected, f"{type(found.module).__name__} {found.name!r}")
