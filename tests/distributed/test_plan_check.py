"""Ranks behind shaped links, as `make plan-check` starts them: they send and wait as predicted."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.plan import links, start
from benchmarks.plan.cells import MEGABIT, Cell, Place
from benchmarks.plan.judge import judged
from multihead.distributed.work import Scheme

pytestmark = pytest.mark.timeout(120)
CELL = Cell(Scheme(2, 1), 2048, 4, 4)


def namespaces() -> set[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=20)
    return {line.split()[0] for line in done.stdout.splitlines()}


@pytest.fixture
def shaped() -> None:
    lacking = links.missing()
    if lacking is not None:
        pytest.skip(lacking)


def step(rate: float | None) -> tuple[dict, float]:
    """A row of the table of one step, and the seconds that its messages take on the link."""
    if find_spec("torch") is None:
        pytest.skip("no torch")
    place = Place(2, rate, (CELL,))
    (found,) = start.run(place, turns=1, most=1)
    keys = CELL.length // 2 * CELL.heads * 2 * CELL.head_dim * 4
    return judged(place, CELL, found), 3 * keys / (place.bandwidth or 1e12)


@pytest.mark.usefixtures("shaped")
def test_ranks_wait_for_a_slow_link_and_send_what_is_predicted() -> None:
    before = namespaces()
    row, transfer = step(40 * MEGABIT)
    assert namespaces() == before
    assert row["measured"]["bytes"] == [row["predicted"]["bytes"]] * 2
    assert row["ratios"]["memory"] == pytest.approx(1, abs=0.1)
    assert transfer > 1
    assert row["measured"]["seconds"] > 0.9 * transfer


def test_ranks_on_the_loopback_send_the_same() -> None:
    row, _ = step(None)
    assert row["links"] == "loopback"
    assert row["measured"]["bytes"] == [row["predicted"]["bytes"]] * 2


@pytest.mark.usefixtures("shaped")
def test_links_are_removed_after_a_failure() -> None:
    before = namespaces()

    def fail() -> None:
        with links.shaped(2, 1e6):
            assert len(namespaces() - before) == 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert namespaces() == before


@pytest.mark.usefixtures("shaped")
def test_what_a_killed_process_left_is_removed() -> None:
    code = """
import os
from benchmarks.plan import links
made = links.shaped(1, 1e6)
made.__enter__()
os._exit(0)
"""
    before = namespaces()
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=root)
    assert len(namespaces() - before) == 2
    with links.shaped(1, 1e6):
        pass
    assert namespaces() == before


@pytest.mark.usefixtures("shaped")
def test_a_rank_that_fails_is_an_error_and_leaves_nothing() -> None:
    before = namespaces()
    with links.shaped(2, 1e6) as hosts, pytest.raises(RuntimeError, match="rank 0 failed"):
        start.started(hosts, "benchmarks.plan.nothing", "")
    assert namespaces() == before


def test_why_there_are_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links.sys, "platform", "darwin")
    assert links.missing() == "network namespaces are Linux's"
    monkeypatch.setattr(links.sys, "platform", "linux")
    monkeypatch.setattr(links.os, "geteuid", lambda: 1000, raising=False)
    assert links.missing() == "network namespaces need root"
    monkeypatch.setattr(links.os, "geteuid", lambda: 0)
    monkeypatch.setattr(links.shutil, "which", lambda name: None)
    assert links.missing() == "no ip and no tc (package iproute2)"
