"""The program of each rank whose faults are tested: ``fault_rank.py gloo|mpi FAULT TIMEOUT``.

Rank 1 has the fault, in the middle of a job. Each rank says what it raised, and how late.
``fault_rank.py serve`` starts such programs on gloo, by forks: PyTorch takes long to import.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from multihead.distributed import Communicator, ring_attention, ring_attention_backward

X = np.ones((1, 2, 60, 8), np.float32)
LATE = 100.0  # seconds that a rank is stuck: beyond any test


def on_mpi(timeout: float) -> Communicator:
    from multihead.distributed.mpi import MPI, MPICommunicator

    if "absent" in sys.argv and MPI.COMM_WORLD.Get_rank() == 1:
        time.sleep(LATE)
    return MPICommunicator(timeout=timeout)


def on_gloo(timeout: float) -> Communicator:
    """Rank, size and where to meet are in the environment, as torchrun has them, or a file."""
    import torch.distributed as dist

    from multihead.distributed.process_group import ProcessGroupCommunicator

    if meeting := os.environ.get("MEETING"):
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=size)
    else:
        dist.init_process_group("gloo")
    return ProcessGroupCommunicator(timeout=timeout)


ON = {"gloo": on_gloo, "mpi": on_mpi}


def step(ranks: Communicator, x: np.ndarray = X) -> None:
    _, cache = ring_attention(x, x, x, communicator=ranks, return_cache=True)
    ring_attention_backward(x, cache)


def kill(ranks: Communicator) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop(ranks: Communicator) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def hang(ranks: Communicator) -> None:
    time.sleep(LATE)


def fail(ranks: Communicator) -> None:
    raise OverflowError("a mistake")


def fail_inside(ranks: Communicator) -> None:
    """Fail where others have begun to send."""
    started = ranks.start

    def start(*messages: Any) -> Any:
        moved = started(*messages)
        calls.append(moved)
        if len(calls) == 7:
            raise OverflowError("a mistake")
        return moved

    calls: list[Any] = []
    ranks.start = start
    step(ranks)


def leave(ranks: Communicator) -> None:
    sys.exit(3)


def leave_at_once(ranks: Communicator) -> None:
    os._exit(5)


def interrupt(ranks: Communicator) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(LATE)


def shape(ranks: Communicator) -> None:
    step(ranks, X[:, :1])


def dtype(ranks: Communicator) -> None:
    step(ranks, X.astype(np.float64))


def larger(ranks: Communicator) -> None:
    ranks.sum(np.ones(1000))


def smaller(ranks: Communicator) -> None:
    ranks.sum(np.ones(10))


def other_dtype(ranks: Communicator) -> None:
    ranks.sum(np.ones(200, np.float32))


FAULTS: dict[str, Callable[[Communicator], None]] = {
    f.__name__: f
    for f in (
        kill, stop, hang, fail, fail_inside, leave, leave_at_once, interrupt, shape, dtype, larger,
        smaller, other_dtype,
    )
}  # fmt: skip


def main() -> None:
    print(f"pid {os.getpid()}", flush=True)
    transport, fault, timeout = sys.argv[1:4]
    caught = "caught" in sys.argv[4:]
    ranks = ON[transport](float(timeout) if fault == "absent" else 60.0)
    step(ranks)
    step(ranks)
    ranks.timeout = float(timeout)
    print(f"rank {ranks.rank} goes on", flush=True)
    began = time.monotonic()
    try:
        if ranks.rank == 1:
            FAULTS[fault](ranks)
        elif fault in ("larger", "smaller", "other_dtype"):
            ranks.sum(np.ones(100))
        else:
            step(ranks)
    except Exception as error:
        text = f"{time.monotonic() - began:.2f} {type(error).__name__}: {error}"
        print(f"rank {ranks.rank}: {text}", flush=True)
        if not caught:
            raise
        try:  # nothing more is exchanged, and that is said at once
            ranks.sum(np.ones(1))
        except ConnectionError as again:
            print(f"rank {ranks.rank} again: {again}", flush=True)
    if transport == "gloo" and caught:
        import torch.distributed as dist

        dist.destroy_process_group()


def serve() -> None:
    """Fork a rank for each line, and say how each ends."""
    importlib.import_module("multihead.distributed.process_group")

    waiting: set[int] = set()
    print("ready", flush=True)
    while True:
        if select.select([sys.stdin], [], [], 0.02)[0]:
            line = sys.stdin.readline()
            if not line:
                sys.exit()
            job = json.loads(line)
            pid = os.fork()
            if pid == 0:
                return become(job)
            waiting.add(pid)
            print(json.dumps({"started": pid}), flush=True)
        for pid in list(waiting):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                waiting.discard(pid)
                code = os.waitstatus_to_exitcode(status)
                print(json.dumps({"ended": pid, "code": code}), flush=True)


def become(job: dict[str, Any]) -> None:
    """Be a rank: in a group of its own, with its arguments, environment and output."""
    os.setpgrp()
    os.environ.update(job["environment"])
    sys.argv[1:] = job["arguments"]
    out = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    none = os.open(os.devnull, os.O_RDONLY)
    for to, of in ((0, none), (1, out), (2, out)):
        os.dup2(of, to)


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        serve()
    main()
