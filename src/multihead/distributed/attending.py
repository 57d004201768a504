"""Attention of a layer whose tokens are sharded: either scheme, on arrays that are taken in."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from multihead.arrays import Array
from multihead.distributed import ring, ulysses
from multihead.distributed.communicator import Communicator
from multihead.distributed.context_parallel import ContextParallel
from multihead.distributed.given import Given, Options
from multihead.distributed.problem import Problem, prepare
from multihead.distributed.ring import Back, Gradients, Result

_Held: TypeAlias = tuple[Problem, Result] | tuple[ulysses.Exchanged, Result]


class Attended(NamedTuple):
    """A call of attention, and what it leaves for backward.

    Attributes
    ----------
    out : ndarray
        Of this rank's queries, in the dtype computed in.
    """

    out: Array
    communicator: Communicator
    held: _Held

    @property
    def shared(self) -> bool:
        """Whether the gradient of the mask is a sum over all ranks."""
        call = self.held[0]
        return (call if isinstance(call, Problem) else call.problem).shared


def attend(parallel: ContextParallel, given: Given, options: Options) -> Attended:
    """Compute attention over the keys of all ranks; all of them agree on the call first."""
    communicator = parallel.communicator
    if parallel.scheme == "ring":
        problem = prepare(communicator, given, options, parallel.sharding)
        result = ring.forward(problem, communicator)
        return Attended(result.out, communicator, (problem, result))
    call = ulysses.exchange(communicator, parallel.ring, given, options, parallel.sharding)
    result, of_heads = ulysses.forward(call, communicator)
    return Attended(result.out, communicator, (call, of_heads))


def attend_backward(attended: Attended, d_out: Array, wanted: tuple[bool, bool]) -> Gradients:
    """Compute gradients in the dtype computed in; of mask and sinks where wanted."""
    communicator, (call, result) = attended.communicator, attended.held
    back = Back(d_out, None, wanted)
    if isinstance(call, Problem):
        return ring.backward(call, communicator, result, back)
    return ulysses.backward(call, communicator, result, back)
