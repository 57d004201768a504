"""Two processes in one gloo group, and the models that they and a single process train."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import torch

from multihead.torch import MultiheadAttention, accelerate

WORLD = 2
START_SECONDS, SECONDS = 60.0, 25.0  # for the processes, and for one job
EMBED, HEADS = 15, 3  # of a layer, sharded unevenly
WIDTH, EVEN, LAYERS = 18, 2, 2  # of an encoder; PyTorch's fused layers want an even number of heads
SPLIT = 4  # rank 0 has the first items of a batch, rank 1 the others

Arrays = dict[str, np.ndarray]
Batch = tuple[np.ndarray, np.ndarray, np.ndarray]  # items, what is padding, targets


class Pair:
    """Two processes that run one job after another; a failure or a late answer kills both."""

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory = directory
        self._starts = 0
        self._workers: list[tuple[Any, multiprocessing.connection.Connection]] = []

    def run(
        self, job: Callable[..., Arrays], *arguments: Any, seconds: float = SECONDS
    ) -> list[Arrays]:
        """Results of ``job(rank, *arguments)`` in both processes, by rank."""
        try:
            if not self._workers:
                self._start()
                self._answers(START_SECONDS)
            for _, pipe in self._workers:
                pipe.send((job, arguments))
            return self._answers(seconds)
        except BaseException:
            self.kill()
            raise

    def _answers(self, seconds: float) -> list[Arrays]:
        late = time.monotonic() + seconds
        pipes = [pipe for _, pipe in self._workers]
        results: dict[int, Arrays] = {}
        while len(results) < WORLD:
            waiting = [pipe for rank, pipe in enumerate(pipes) if rank not in results]
            ready = multiprocessing.connection.wait(waiting, max(0.0, late - time.monotonic()))
            assert ready, f"ranks {set(range(WORLD)) - set(results)}: no answer in time"
            for pipe in ready:
                rank = pipes.index(pipe)
                try:
                    results[rank], failure = pipe.recv()
                except EOFError:
                    failure = "the process ended"
                assert not failure, f"rank {rank}: {failure}"
        return [results[rank] for rank in range(WORLD)]

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._starts += 1
        store = self._directory / f"store{self._starts}"
        for rank in range(WORLD):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, store, theirs), daemon=True)
            self._workers.append((process, ours))
            process.start()
            theirs.close()

    def kill(self) -> None:
        """End both processes; the next job starts others."""
        for process, pipe in self._workers:
            if process.pid is not None:
                process.kill()
                process.join()
            pipe.close()
        self._workers = []

    def pids(self) -> list[int]:
        """Process ids, by rank."""
        return [process.pid for process, _ in self._workers]


def _serve(rank: int, store: pathlib.Path, pipe: multiprocessing.connection.Connection) -> None:
    torch.nn.functional.multi_head_attention_forward = _not_ours
    torch._native_multi_head_attention = _not_ours
    torch._transformer_encoder_layer_fwd = _not_ours
    torch.distributed.init_process_group(
        "gloo",
        init_method=store.absolute().as_uri(),
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=START_SECONDS),
    )
    pipe.send(({}, ""))
    while True:
        try:
            job, arguments = pipe.recv()
        except EOFError:
            # gloo's threads may still hold tensors: do not take the interpreter from under them
            os._exit(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pipe.send((job(rank, *arguments), ""))
        except BaseException:
            pipe.send(({}, traceback.format_exc()))


def _not_ours(*_: Any, **__: Any) -> Any:
    raise AssertionError("PyTorch's own attention was called")


@dataclasses.dataclass(frozen=True)
class How:
    """A model and what is done to it."""

    kind: str = "encoder"  # or "layer"; "choice" of two layers
    wrapper: str = "ddp"  # or "fsdp"
    options: tuple[tuple[str, Any], ...] = ()  # of the wrapper
    shards: str = "root"  # or "layers", "attention": what is sharded by itself
    accelerated: str = "before"  # or "after" the wrapping, or ours from the "beginning"
    checkpoint: str = ""  # or "layers", "attention", "reentrant"
    dtype: torch.dtype = torch.float64
    dropout: float = 0.0
    weights: bool = False  # the loss has a layer's attention weights
    accumulated: bool = False  # DDP: a step is two backward passes


class Choice(torch.nn.Module):
    """Two attention layers, of which a call uses one."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.MultiheadAttention(EMBED, HEADS, **how) for _ in range(WORLD)
        )

    def forward(self, x: torch.Tensor, padding: torch.Tensor, which: int) -> torch.Tensor:
        return self.layers[which](x, x, x, key_padding_mask=padding, need_weights=False)[0]


def plain(how: How) -> torch.nn.Module:
    """Return PyTorch's model, with its random parameters."""
    made: dict[str, Any] = {"dropout": how.dropout, "batch_first": True, "dtype": how.dtype}
    if how.kind == "layer":
        return torch.nn.MultiheadAttention(EMBED, HEADS, **made)
    if how.kind == "choice":
        return Choice(**made)
    layer = torch.nn.TransformerEncoderLayer(WIDTH, EVEN, 2 * WIDTH + 1, **made)
    return torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


def ours(how: How, state: Arrays) -> torch.nn.Module:
    """Return the model on the engine, with a state; not yet if it is accelerated later."""
    model = plain(how)
    if how.accelerated == "beginning":
        assert how.kind == "layer"
        model = MultiheadAttention(
            EMBED, HEADS, dropout=how.dropout, batch_first=True, dtype=how.dtype
        )
    model.load_state_dict({name: torch.tensor(x) for name, x in state.items()})
    if how.accelerated == "before":
        assert accelerate(model) == _count(how)
    return model


def _count(how: How) -> int:
    return {"layer": 1, "choice": WORLD, "encoder": LAYERS}[how.kind]


def wrapped(how: How, model: torch.nn.Module, rank: int) -> torch.nn.Module:
    """Return the model in its wrappers."""
    if how.checkpoint:
        model = _checkpointed(how, model)
    if how.wrapper == "ddp":
        if rank:  # rank 0's parameters count
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(1)
        model = torch.nn.parallel.DistributedDataParallel(model, **dict(how.options))
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh("cpu", (WORLD,))
        alone: list[torch.nn.Module] = []
        if how.shards == "layers":
            alone = list(model.layers)
        elif how.shards == "attention":
            alone = [m for m in model.modules() if isinstance(m, torch.nn.MultiheadAttention)]
        for part in [*alone, model]:
            fully_shard(part, mesh=mesh, **dict(how.options))
            assert isinstance(part, FSDPModule)
        assert all(p.to_local().numel() < p.numel() for p in model.parameters())
    if how.accelerated == "after":
        assert accelerate(model) == _count(how)
    found = [m for m in model.modules() if isinstance(m, MultiheadAttention)]
    assert len(found) == _count(how)
    return model


def _checkpointed(how: How, model: torch.nn.Module) -> torch.nn.Module:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        CheckpointImpl,
        apply_activation_checkpointing,
        checkpoint_wrapper,
    )

    kind = (
        torch.nn.MultiheadAttention
        if how.checkpoint == "attention"
        else torch.nn.TransformerEncoderLayer
    )
    reentrant = how.checkpoint == "reentrant"
    way = CheckpointImpl.REENTRANT if reentrant else CheckpointImpl.NO_REENTRANT
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=lambda m: checkpoint_wrapper(m, checkpoint_impl=way),
        check_fn=lambda m: isinstance(m, kind),
    )
    assert any("checkpoint" in type(m).__name__.lower() for m in model.modules())
    return model


def share(batch: Batch, rank: int | None) -> Batch:
    """Return a rank's part of a batch, or the whole."""
    if rank is None:
        return batch
    x, padding, target = (part[SPLIT:] if rank else part[:SPLIT] for part in batch)
    return x, padding, target


def output(how: How, model: torch.nn.Module, batch: Batch, which: int = 0) -> Any:
    """Return the model's output, and the weights if they are asked for."""
    x, padding = torch.tensor(batch[0], dtype=how.dtype), torch.tensor(batch[1])
    if how.kind == "layer":
        return model(x, x, x, key_padding_mask=padding, need_weights=how.weights)
    if how.kind == "choice":
        return model(x, padding, which), None
    if how.checkpoint == "reentrant":
        x.requires_grad_()  # or nothing would be differentiated
    return model(x, src_key_padding_mask=padding), None


def loss(how: How, model: torch.nn.Module, batch: Batch, which: int = 0) -> torch.Tensor:
    """Return the sum of the items' losses, each a mean over the tokens."""
    out, weights = output(how, model, batch, which)
    wide = torch.promote_types(how.dtype, torch.float32)
    total = (out - torch.tensor(batch[2], dtype=wide)).square().sum()
    if weights is not None:
        total = total + 3 * weights.square().sum()
    return total / out.shape[1]


def parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the parameters under the names that they have without wrappers."""
    for name, p in model.named_parameters():
        yield name.removeprefix("module.").replace("_checkpoint_wrapped_module.", ""), p


def full(x: torch.Tensor) -> np.ndarray:
    """Return a whole tensor's values; every rank calls this for its part of a sharded one."""
    x = x.detach()
    x = x.full_tensor() if hasattr(x, "full_tensor") else x
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy().copy()


def optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    # a gradient that is 0 but for rounding, as that of the keys' bias, moves nothing
    return torch.optim.AdamW(model.parameters(), lr=0.02, eps=1e-3)


def train(how: How, model: torch.nn.Module, batches: list[Batch], rank: int | None) -> Arrays:
    """Train, a step for each batch, and return gradients, parameters and an output."""
    found: Arrays = {}
    optimize = optimizer(model)
    model.train()
    for i, batch in enumerate(batches):
        optimize.zero_grad()
        items, part = len(batch[0]), share(batch, rank)
        scale = 1 if rank is None else WORLD  # the wrappers average over the ranks
        if how.kind == "choice":
            _choose(how, model, batch, i, rank)
        elif how.accumulated and rank is not None:
            _accumulate(how, model, part, scale / items)
        else:
            (loss(how, model, part) * scale / items).backward()
        for name, p in parameters(model):
            if p.grad is not None:
                found[f"step {i} gradient {name}"] = full(p.grad)
        optimize.step()
    found |= {f"parameter {name}": full(p) for name, p in parameters(model)}
    if how.wrapper == "fsdp" and rank is not None:
        found |= _gathered(model)
    model.eval()
    # PyTorch's own without its fused path
    with torch.set_grad_enabled(rank is None or how.checkpoint == "reentrant"):
        if how.kind != "choice":
            found["out"] = full(output(how, model, share(batches[-1], rank))[0])
    return found


def _choose(how: How, model: torch.nn.Module, batch: Batch, i: int, rank: int | None) -> None:
    """Call another layer in each rank, and in later steps the same, so that one is unused."""
    for r in range(WORLD) if rank is None else (rank,):
        which = r if i == 0 else i % WORLD
        total = loss(how, model, share(batch, r), which) / len(batch[0])
        (total if rank is None else total * WORLD).backward()


def _accumulate(how: How, model: torch.nn.Module, part: Batch, scale: float) -> None:
    """Go backward twice; the second time shares the gradients of both."""
    first, second = (tuple(x[i::2] for x in part) for i in range(2))
    with model.no_sync():
        (loss(how, model, first) * scale).backward()
    (loss(how, model, second) * scale).backward()


def distributed_training(rank: int, how: How, state: Arrays, batches: list[Batch]) -> Arrays:
    """Train in two processes."""
    if how.weights and how.wrapper == "fsdp":  # for PyTorch's own module too
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    torch.manual_seed(rank)
    return train(how, wrapped(how, ours(how, state), rank), batches, rank)


def _gathered(model: torch.nn.Module) -> Arrays:
    """Return the whole state dict of a sharded model."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True)
    state = get_model_state_dict(model, options=options)
    return {f"state {name}": full(x) for name, x in state.items()}


def loaded(rank: int, how: How, state: Arrays, batch: Batch) -> Arrays:
    """Shard a model that has no memory yet, give it rank 0's state, and call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    with torch.device("meta"):
        model = plain(how)
    if how.accelerated == "before":
        assert accelerate(model) == _count(how)
    model = wrapped(how, model, rank).to_empty(device="cpu")
    tensors = {} if rank else {name: torch.tensor(x) for name, x in state.items()}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, tensors, options=options)
    found = _gathered(model)
    with torch.no_grad():
        return found | {"out": full(output(how, model.eval(), share(batch, rank))[0])}


def dropped(rank: int, how: How, state: Arrays, batch: Batch, seeds: list[int]) -> Arrays:
    """One step with dropout on a batch that both ranks have."""
    model = wrapped(how, ours(how, state), rank)
    torch.manual_seed(seeds[rank])
    out, _ = output(how, model.train(), batch)
    out.square().sum().backward()
    found = {"out": full(out)}
    found |= {f"gradient {name}": full(p.grad) for name, p in parameters(model)}
    optimizer(model).step()
    return found | {f"parameter {name}": full(p) for name, p in parameters(model)}


def freed(rank: int, when: str) -> Arrays:
    """Use a layer whose parameters have no memory, as FSDP leaves them between calls."""
    layer = MultiheadAttention(EMBED, HEADS, batch_first=True)
    x = torch.randn(7, EMBED, requires_grad=True)
    if when == "backward without its hook":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh("cpu", (WORLD,))
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        out = layer(x, x, x, need_weights=False)[0]
        assert out._is_view()
        out += 1  # which leaves FSDP's hook behind
    else:
        out = layer(x, x, x, need_weights=False)[0]
        layer.in_proj_weight.untyped_storage().resize_(0)
    with contextlib.suppress(RuntimeError):
        if when == "forward":
            layer(x, x, x, need_weights=False)
        else:
            out.sum().backward()
        raise AssertionError("no error")
    assert x.grad is None
    return {}


def fail(rank: int, which: int) -> Arrays:
    """One rank fails while the other waits for it."""
    if rank == which:
        raise ValueError("as it should")
    torch.distributed.barrier()
    return {}


def wait(rank: int, seconds: float) -> Arrays:
    time.sleep(seconds)
    return {}
