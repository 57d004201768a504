"""Attention past one machine: sequences of which each rank holds a part.

`ring_attention` and its backward compute what `multihead.functional` does. The ranks are threads
(``multihead.distributed.threads``), a process group of PyTorch's (``.process_group``) or an
``mpi4py`` communicator (``.mpi``), each imported by its name alone.
"""

from __future__ import annotations

from multihead.distributed.communicator import Communicator
from multihead.distributed.functions import ring_attention, ring_attention_backward
from multihead.distributed.sharding import gather, positions, shard

__all__ = [
    "Communicator",
    "gather",
    "positions",
    "ring_attention",
    "ring_attention_backward",
    "shard",
]
