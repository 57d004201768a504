"""Ranks that are processes, started and ended."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.plan.cells import Place
from benchmarks.plan.links import Host, loopback, shaped

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 900  # seconds that a place takes at most
PORT = 29400  # in a namespace all are free


def run(place: Place, turns: int, most: int) -> list[dict[str, Any]]:
    """Run a place's cells and return what rank 0 wrote of each.

    Raises
    ------
    RuntimeError
        If a rank fails, or the links cannot be made.
    """
    with _hosts(place) as hosts:
        asked = {"cells": place.cells, "bandwidth": place.bandwidth, "turns": turns, "most": most}
        return started(hosts, "benchmarks.plan.rank", json.dumps(asked))


def started(hosts: Sequence[Host], module: str, told: str) -> list[dict[str, Any]]:
    """Start a rank of a program on each host; return the lines of rank 0, which are JSON."""
    port = PORT if hosts[0].prefix else _free_port()
    with ExitStack() as ended:
        ranks = [_start(hosts, rank, port, module) for rank in range(len(hosts))]
        for process in ranks:
            ended.callback(_end, process)
        for process in ranks:
            assert process.stdin
            process.stdin.write(told)
            process.stdin.close()
            process.stdin = None
        text, _ = ranks[0].communicate(timeout=TIMEOUT)
        for rank, process in enumerate(ranks):
            if process.wait(timeout=60):
                raise RuntimeError(f"rank {rank} failed")
    return [json.loads(line) for line in text.splitlines()]


def _start(hosts: Sequence[Host], rank: int, port: int, module: str) -> subprocess.Popen[str]:
    host = hosts[rank]
    environment = {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(hosts)),
        "MASTER_ADDR": hosts[0].address,
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": host.interface,
        "MULTIHEAD_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # that a host of a namespace has no name
    }
    return subprocess.Popen(
        [*host.prefix, sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if rank == 0 else None,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


@contextmanager
def _hosts(place: Place) -> Iterator[list[Host]]:
    if place.rate is None:
        yield loopback(place.ranks)
    else:
        with shaped(place.ranks, place.rate) as hosts:
            yield hosts


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
