"""Ranks that are processes, on gloo and on MPI: the bits and bytes of ranks that are threads."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import launching
import numpy as np
import pytest
import rank

from multihead.distributed import threads

SECONDS = 100
Results = list[dict[str, np.ndarray]]


def started(transport: str, size: int, folder: pathlib.Path) -> Results:
    """What the ranks wrote, or skip."""
    if why := launching.lacking(transport):
        pytest.skip(why)
    program = [str(launching.HERE / "rank.py"), transport, str(folder)]
    command = [*launching.command(transport, size), *program]
    ended = launching.Job(command, folder / "said.txt").wait(SECONDS)
    assert ended.codes == [0], ended.said
    return [dict(np.load(folder / f"{transport}{r}.npz")) for r in range(size)]


@pytest.fixture(scope="module")
def on_threads() -> Callable[[int], Results]:
    """What threads give, once for each number of them."""
    known: dict[int, Results] = {}

    def of(size: int) -> Results:
        if size not in known:
            known[size] = threads.run(
                size, lambda ranks: rank.every_bit(rank.on_threads(ranks)), timeout=60
            )
        return known[size]

    return of


@pytest.mark.timeout(240)
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("transport", ["gloo", "mpi"])
def test_bits_and_bytes_do_not_depend_on_the_transport(
    transport: str, size: int, tmp_path: pathlib.Path, on_threads: Callable[[int], Results]
) -> None:
    found = started(transport, size, tmp_path)
    for here, there in zip(found, on_threads(size), strict=True):
        mistake = str(here.pop("mistake"))
        assert mistake == "query: expected (1, 2, 4), as on rank 0, got (1, 2, 8) on rank 1"
        assert here.keys() == there.keys()
        for name, x in there.items():
            assert np.array_equal(here[name], x), name
