"""Ranks of a process group of ``torch.distributed``, on gloo: what `torchrun` starts."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from multihead.arrays import Array
from multihead.checks import wrong, wrong_type
from multihead.distributed.communicator import (
    TIMEOUT,
    Communicator,
    Messages,
    Moving,
    as_bytes,
)

__all__ = ["ProcessGroupCommunicator"]

_TAGS, _SIZES = 2**12, 2**19 - 1  # their product is what gloo has room for
_LEAST = 1e-3  # seconds; gloo takes none for no limit at all


class ProcessGroupCommunicator(Communicator):
    """The ranks of a process group.

    Parameters
    ----------
    group : ProcessGroup or DeviceMesh, optional
        The default group if not given. Of a mesh, one dimension.
    mesh_dim : int or str, optional
        Which dimension of a mesh, if it has several.
    timeout : float, default 300.0
        Seconds that a wait takes at most.

    Raises
    ------
    ValueError
        If this process is not in the group, the group has no backend for tensors in CPU memory, or
        a mesh has several dimensions and none is named.

    Examples
    --------
    >>> import torch.distributed as dist
    >>> from multihead.distributed.process_group import ProcessGroupCommunicator
    >>> store = dist.HashStore()
    >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> ProcessGroupCommunicator().size
    1
    >>> dist.destroy_process_group()
    """

    def __init__(
        self, group: Any = None, *, mesh_dim: int | str | None = None, timeout: float = TIMEOUT
    ) -> None:
        if isinstance(group, dist.device_mesh.DeviceMesh):
            if mesh_dim is None and group.ndim != 1:
                raise wrong("mesh_dim", "the dimension of a mesh that has several", "None")
            group = group.get_group(mesh_dim)
        elif mesh_dim is not None:
            raise wrong("group", "a DeviceMesh beside mesh_dim", type(group).__name__)
        group = dist.group.WORLD if group is None else group
        if not isinstance(group, dist.ProcessGroup):
            expected = "a ProcessGroup of which this process is a member, or a DeviceMesh"
            way = " (torch.distributed.init_process_group)" if group is None else ""
            raise wrong_type("group", expected, f"{type(group).__name__}{way}")
        if torch.device("cpu") not in group._device_types:
            raise wrong("group", 'a backend for "cpu", such as gloo', dist.get_backend(group))
        super().__init__(group.rank(), group.size(), timeout)
        self._group = group
        self._sent, self._received = [0] * self.size, [0] * self.size

    def start(self, sends: Messages, receives: Messages) -> Moving:
        """Start a send or a receive for each array; gloo's own thread moves them."""
        started: list[_Started] = []
        try:
            for rank, arrays in receives.items():
                for x in arrays:
                    tensor, tag = torch.from_numpy(as_bytes(x)), _tag(self._received, rank, x)
                    work = dist.irecv(tensor, group=self._group, group_src=rank, tag=tag)
                    started.append(_Started(rank, work, tensor))
            for rank, arrays in sends.items():
                for x in arrays:
                    tensor, tag = _tensor(x), _tag(self._sent, rank, x)
                    work = dist.isend(tensor, group=self._group, group_dst=rank, tag=tag)
                    started.append(_Started(rank, work, tensor))
        except RuntimeError as error:
            raise ConnectionError(_lost(self.rank, rank)) from error
        return _Moved(self, started)


class _Started(NamedTuple):
    """A tensor on its way from or to a rank, and torch's handle of it."""

    rank: int
    work: Any
    tensor: torch.Tensor


class _Moved:
    def __init__(self, at: Communicator, started: list[_Started]) -> None:
        self._at, self._started = at, started

    def wait(self, late: float) -> None:
        if threading.current_thread() is threading.main_thread():
            _beside(lambda: self._wait(late))
        else:
            self._wait(late)

    def _wait(self, late: float) -> None:
        for one in self._started:
            limit = timedelta(seconds=max(late - time.monotonic(), _LEAST))
            try:
                one.work.wait(limit)
            except RuntimeError as error:
                if "imed out" in str(error):
                    waited = f"rank {self._at.rank} waited {self._at.timeout:g} s for rank"
                    raise TimeoutError(f"{waited} {one.rank}") from error
                raise ConnectionError(_lost(self._at.rank, one.rank)) from error
        self._started = []


def _beside(call: Callable[[], None]) -> None:
    """Call something in another thread: the main one hears Ctrl-C meanwhile, which gloo does not.

    One who is interrupted leaves the thread behind, to end at its own time.
    """
    found: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            call()
        except BaseException as error:
            found.put(error)
        else:
            found.put(None)

    threading.Thread(target=work, daemon=True).start()
    if (error := found.get()) is not None:
        raise error


def _tag(counts: list[int], rank: int, x: Array) -> int:
    """Count messages, and tell sizes apart: gloo ends the process where one meets another size."""
    counts[rank] = (counts[rank] + 1) % _TAGS
    return counts[rank] * _SIZES + x.nbytes % _SIZES


def _lost(here: int, there: int) -> str:
    return f"rank {here} lost rank {there}: its process has ended, or the connection is broken"


def _tensor(x: Array) -> torch.Tensor:
    """View an array to be sent; PyTorch warns of those that are read-only."""
    return torch.from_numpy(as_bytes(x if x.flags.writeable else np.array(x)))
