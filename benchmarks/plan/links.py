"""Machines on one: network namespaces, each behind a link of a given rate."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

BURST = 128 * 1024  # bytes that a link lets through at once: two of the largest packets
QUEUE = 64 * 1024**2  # bytes that wait before a link: nothing is dropped
INTERFACE = "eth0"
CONTROL = "reno"  # TCP's, which every kernel has: BBR leaves a part of a link that two share unused
OWN = "multihead"  # begins the name of a namespace, before the process that made it


class Host(NamedTuple):
    """Where a rank runs.

    Attributes
    ----------
    prefix : tuple of str
        Begins its command.
    interface : str
        Of the network that the ranks have in common.
    address : str
    """

    prefix: tuple[str, ...]
    interface: str
    address: str


def loopback(ranks: int) -> list[Host]:
    """Return hosts that are this machine."""
    return [Host((), "lo", "127.0.0.1")] * ranks


def missing() -> str | None:
    """Say what network namespaces lack here, or None."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacks = [name for name in ("ip", "tc") if shutil.which(name) is None]
    if lacks:
        return f"no {' and no '.join(lacks)} (package iproute2)"
    try:
        with shaped(1, 1e6):
            return None
    except RuntimeError as error:
        return str(error)


@contextmanager
def shaped(ranks: int, rate: float) -> Iterator[list[Host]]:
    """Give each rank a namespace behind a link of so many bytes per second each way.

    The links meet in a bridge, in a namespace too: the machine's own network is left alone. Each
    direction is shaped where it enters the link, and TCP is told how to share it. All is removed
    at the end.

    Raises
    ------
    RuntimeError
        If the system refuses.
    """
    _sweep()
    own = f"{OWN}-{os.getpid()}"
    switch, names = f"{own}-switch", [f"{own}-{rank}" for rank in range(ranks)]
    made = []
    try:
        for name in (switch, *names):
            _run("ip", "netns", "add", name)
            made.append(name)
        _run("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", switch, "link", "set", "bridge", "up")
        hosts = [_joined(switch, rank, name, rate) for rank, name in enumerate(names)]
        yield hosts
    finally:
        for name in reversed(made):
            _delete(name)


def _sweep() -> None:
    """Remove what a process left that was killed."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, timeout=20)
    for found in re.finditer(rf"^({OWN}-(\d+)-\w+)", done.stdout, re.MULTILINE):
        if not Path(f"/proc/{found[2]}").exists():
            _delete(found[1])


def _delete(name: str) -> None:
    subprocess.run(["ip", "netns", "del", name], check=False, timeout=20)


def _joined(switch: str, rank: int, name: str, rate: float) -> Host:
    """Tie a namespace to the bridge."""
    port, address = f"port{rank}", f"10.77.0.{rank + 1}"
    ends = ("type", "veth", "peer", "name", port, "netns", switch)
    _run("ip", "-n", name, "link", "add", INTERFACE, *ends)
    _run("ip", "-n", switch, "link", "set", port, "master", "bridge", "up")
    _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", INTERFACE)
    for interface in ("lo", INTERFACE):
        _run("ip", "-n", name, "link", "set", interface, "up")
    controlled = f"echo {CONTROL} > /proc/sys/net/ipv4/tcp_congestion_control"
    _run("ip", "netns", "exec", name, "sh", "-c", controlled)
    limits = ("rate", f"{round(8 * rate)}bit", "burst", str(BURST), "limit", str(QUEUE))
    for at, interface in ((name, INTERFACE), (switch, port)):
        _run("tc", "-n", at, "qdisc", "add", "dev", interface, "root", "tbf", *limits)
    return Host(("ip", "netns", "exec", name), INTERFACE, address)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
