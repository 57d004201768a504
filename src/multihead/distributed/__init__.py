"""Attention past one machine: sequences of which each rank holds a part.

`ring_attention`, `all_to_all_attention` and their backwards compute what `multihead.functional`
does, and `ParallelAttention` what a layer does; `shard` cuts up what they are given. The ranks are
threads (``multihead.distributed.threads``), a process group of PyTorch's (``.process_group``) or
an ``mpi4py`` communicator (``.mpi``), each imported by its name alone.
"""

from __future__ import annotations

from multihead.distributed.all_to_all_functions import (
    all_to_all_attention,
    all_to_all_attention_backward,
)
from multihead.distributed.communicator import Alone, Communicator
from multihead.distributed.context_parallel import ContextParallel
from multihead.distributed.layer import ParallelAttention
from multihead.distributed.ring_functions import ring_attention, ring_attention_backward
from multihead.distributed.sharding import gather, positions, shard

__all__ = [
    "Alone",
    "Communicator",
    "ContextParallel",
    "ParallelAttention",
    "all_to_all_attention",
    "all_to_all_attention_backward",
    "gather",
    "positions",
    "ring_attention",
    "ring_attention_backward",
    "shard",
]
