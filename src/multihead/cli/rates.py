"""What this machine does in a second, of what attention over several machines is made of."""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from multihead.cli.elements import store
from multihead.distributed.cost import BACKWARD, FORWARD, MERGED
from multihead.functional import (
    scaled_dot_product_attention,
    scaled_dot_product_attention_backward,
)

LENGTH, HEADS = 2048, 4  # of what is measured: of longer ones a second does no more
TURNS = 5
MESSAGE = 32 * 1024**2  # bytes


class Rates(NamedTuple):
    """What a rank does in a second.

    Attributes
    ----------
    forward, backward : float
        Operations of attention's passes.
    copying : float
        Bytes that NumPy reads and writes.
    carrying : float
        Bytes that the processors send, and receive as many.
    """

    forward: float
    backward: float
    copying: float
    carrying: float


def measured(head_dim: int, dtype: str) -> Rates:
    """Measure, in a few seconds.

    Examples
    --------
    >>> found = measured(8, "float32")
    >>> found.forward > 1e6 and found.backward > 1e6
    True
    """
    return Rates(*attention(head_dim, dtype), copying(head_dim), carrying())


def attention(head_dim: int, dtype: str, turns: int = TURNS) -> tuple[float, float]:
    """Return the operations per second of attention's forward and backward pass."""
    rng = np.random.default_rng(0)
    shape = (1, HEADS, LENGTH, head_dim)
    q, k, v, d_out = (store(rng.standard_normal(shape), dtype) for _ in range(4))
    _, cache = scaled_dot_product_attention(q, k, v, return_cache=True)
    product = 2.0 * HEADS * LENGTH**2 * head_dim
    forward = _seconds(lambda: scaled_dot_product_attention(q, k, v), turns)
    backward = _seconds(lambda: scaled_dot_product_attention_backward(d_out, cache), turns)
    return FORWARD * product / forward, BACKWARD * product / backward


def copying(head_dim: int, turns: int = TURNS) -> float:
    """Return the bytes per second that NumPy reads and writes where results are merged."""
    total = np.zeros((HEADS, 2 * LENGTH, head_dim), np.float32)
    scales = np.ones((HEADS, 2 * LENGTH, 1), np.float32)

    def merge() -> None:
        more = np.empty_like(total)
        more[...] = 1.0
        np.multiply(total, scales, out=total)
        np.multiply(more, scales, out=more)
        np.add(total, more, out=total)

    return MERGED * total.nbytes / _seconds(merge, turns)


def carrying() -> float:
    """Return the bytes per second that can be sent and received, over TCP within this machine.

    By the time of processors that it takes, however many there are.
    """
    message, into = bytes(MESSAGE), bytearray(MESSAGE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as sender:
            receiver, _ = server.accept()
            with receiver:

                def send_and_receive() -> None:
                    sending = threading.Thread(target=sender.sendall, args=(message,))
                    sending.start()
                    view = memoryview(into)
                    while view:
                        view = view[receiver.recv_into(view) :]
                    sending.join()

                return MESSAGE / _seconds(send_and_receive, 3, time.process_time)


def _seconds(
    call: Callable[[], Any], turns: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    call()
    found = []
    for _ in range(turns):
        begin = clock()
        call()
        found.append(clock() - begin)
    return statistics.median(found)
