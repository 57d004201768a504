"""A call of sharded attention: what the ranks agree on, and what each of them holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from multihead.arguments import AttentionOptions
from multihead.arrays import Array
from multihead.checks import wrong
from multihead.distributed.agreement import agree, agree_all
from multihead.distributed.communicator import Communicator
from multihead.distributed.given import Drawn, Given, Options, checked, signature, take_in
from multihead.distributed.sharding import Run, Sharding, runs_of, sharding_of
from multihead.masks import Mask, score_mask
from multihead.score_rules import ScoreRules, score_rules
from multihead.seeds import seed_from


class Problem(NamedTuple):
    """A call, whole: `given` and `mask` are this rank's, all else is the same on every rank.

    Attributes
    ----------
    given : Given
    options : AttentionOptions
    rules : ScoreRules
        Of the whole: positions of queries and lengths of keys, too.
    mask : Mask or None
        Rows of this rank's queries, and all columns; of packed sequences all of both.
    shared : bool
        Whether the rows of the mask are the same on every rank.
    query_runs, key_runs : list of list of Run
        Of each rank.
    extra : tuple of two ndarray, or None
        A key and a value that every query sees besides, (1, Hk, 1, D) and (1, Hk, 1, Dv). They have
        no place: masks and rules of positions say nothing of them. Every rank has them.
    """

    given: Given
    options: AttentionOptions
    rules: ScoreRules
    mask: Mask | None
    shared: bool
    query_runs: list[list[Run]]
    key_runs: list[list[Run]]
    extra: tuple[Array, Array] | None = None

    @property
    def packed(self) -> bool:
        """Whether sequences are packed."""
        return self.given.packing is not None

    @property
    def longest(self) -> tuple[int, int]:
        """Queries and keys of the longest sequence."""
        queries, keys = (
            max((run.stop for runs in of_ranks for run in runs), default=0)
            for of_ranks in (self.query_runs, self.key_runs)
        )
        return queries, keys

    def sees(self, queries: Run, keys: Run) -> bool:
        """Whether a query may see a key of its sequence, for all that rules of positions say."""
        first = self.of_sequence(self.rules.query_positions, queries.sequence)
        lengths = self.of_sequence(self.rules.key_lengths, queries.sequence)
        if lengths is not None and keys.start >= lengths.max(initial=0):
            return False
        lowest, highest = (0, 0) if first is None else (int(first.min()), int(first.max()))
        left, right = self.options.window_left, self.options.window_right
        right = 0 if self.options.causal else right
        if right >= 0 and keys.start > highest + queries.stop - 1 + right:
            return False
        return left < 0 or keys.stop - 1 >= lowest + queries.start - left

    def of_sequence(self, x: Array | None, sequence: int) -> Array | None:
        """Return what (N,) numbers say of the sequences of a run."""
        return x if x is None or not self.packed else x[sequence : sequence + 1]

    def needs(self, rank: int, of: int) -> bool:
        """Whether the queries of one rank see keys of another."""
        return any(True for _ in self.pairs(rank, of))

    def pairs(self, rank: int, of: int) -> Iterator[tuple[Run, Run]]:
        """Go through the runs of queries of one rank with the runs of keys of another they see."""
        of_sequence: dict[int, list[Run]] = {}
        for keys in self.key_runs[of]:
            of_sequence.setdefault(keys.sequence, []).append(keys)
        for queries in self.query_runs[rank]:
            for keys in of_sequence.get(queries.sequence, ()):
                if self.sees(queries, keys):
                    yield queries, keys


def prepare(
    communicator: Communicator,
    call: tuple[Any, Any, Any] | Given,
    options: Options,
    sharding: Sharding,
    heads: tuple[int, int] | None = None,
) -> Problem:
    """Agree on a call with the other ranks, or raise on all of them.

    `heads` are the first head of the call and how many there are in all, if it has not all.
    """
    given: Given | None = None
    error: Exception | None = None
    said: dict[str, Any] = {}
    try:
        sharding = sharding_of(sharding)
        given = call if isinstance(call, Given) else take_in(*call, options)
        options = checked(options, given)
        said = signature(options, given, sharding)
    except Exception as found:
        error = found
    agree(communicator, said, error)
    assert given is not None
    lengths = gathered(communicator, given.lengths)
    query_runs = runs_of(lengths[:, 0], sharding, "query")
    key_runs = runs_of(lengths[:, 1], sharding, "key")
    queries, keys = (lengths[:, i].sum(axis=0) for i in (0, 1))
    first, count = heads or (0, given.heads[0])
    packed = given.packing is not None
    scores = (given.batch, count, int(queries.max(initial=0)), int(keys.max(initial=0)))
    rules = score_rules(
        scores, given.element.compute, options.asked, (queries, keys) if packed else None
    )
    if heads is not None:
        own = slice(first, first + given.heads[0])
        slopes, sinks = rules.alibi_slopes, rules.sinks
        rules = rules._replace(
            alibi_slopes=None if slopes is None else slopes[..., own],
            sinks=None if sinks is None else sinks[own],
        )
    mask, shared = agreed_mask((communicator,), given, options.attn_mask, scores)
    seed = shared_seed((communicator,), options)
    left, right = rules.window
    return Problem(
        given,
        AttentionOptions(
            given.element.name,
            options.is_causal,
            options.scale,
            options.dropout_p,
            seed,
            options.counter,
            head_offset=first,
            softcap=rules.softcap,
            window_left=left,
            window_right=right,
        ),
        rules,
        mask,
        shared,
        query_runs,
        key_runs,
        options.extra,
    )


def agreed_mask(
    communicators: Sequence[Communicator],
    given: Given,
    attn_mask: Any,
    scores: tuple[int, int, int, int],
) -> tuple[Mask | None, bool]:
    """Check this rank's mask against the scores of all; return it, and whether all share its rows.

    Raises on all ranks if a mask is wrong on one of them.
    """
    if attn_mask is None:
        return None, False
    mask: Mask | None = None
    error: Exception | None = None
    said = {}
    own, rows_given = given.arrays[0].shape[2], 0
    try:
        rows = scores if given.packing is not None else (*given.shapes[0][:-1], scores[3])
        mask = score_mask(attn_mask, rows, given.element.compute, given.folded)
        if mask is not None:
            n, h, rows_given, columns = mask.array.shape
            said = {"attn_mask": [mask.array.dtype.name, n, h, columns]}
    except Exception as found:
        error = found
    agree_all(communicators, said, error)
    if given.packing is not None:
        return mask, True
    told = np.array([rows_given == 1, own != 1, own > 1 == rows_given])
    for communicator in communicators:
        every = gathered(communicator, told)
        told = np.array([every[:, 0].all(), every[:, 1].any(), every[:, 2].any()])
    if told[2] and not told[0]:
        raise wrong("attn_mask", "rows of queries on every rank, or one row on all", "some of both")
    return mask, bool(told[0] and told[1])


def gathered(communicator: Communicator, array: Array) -> Array:
    """Return the arrays of all ranks, one after another."""
    rows = np.empty((communicator.size, *array.shape), array.dtype)
    communicator.all_gather(array, list(rows))
    return rows


def shared_seed(communicators: Sequence[Communicator], options: Options) -> int:
    """Return the seed of rank 0, which it has or draws; 0 where there is no need for one.

    Nothing is to fail from here on: generators have changed. Ranks that have some of their own have
    the same, or all raise.
    """
    seed = options.seed
    if not options.dropout_p:
        return seed if isinstance(seed, int) else 0
    first = all(each.rank == 0 for each in communicators)
    alike = isinstance(seed, np.random.Generator)
    if isinstance(seed, Drawn):
        seed = seed.draw() if first else 0
    told = np.array([seed_from(seed)], np.uint64)
    for communicator in communicators:
        every = gathered(communicator, told)
        if alike and (every != every[0]).any():
            raise wrong("seed", f"{every[0, 0]}, as on rank 0", f"{every.ravel().tolist()}")
        told = every[0]
    return int(told[0])
