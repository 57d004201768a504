"""The net: digests of the bits of some four thousand random calls, which no change may change.

``python tests/net.py`` computes them with the kernel set of the process (MULTIHEAD_ISA) and names
the buckets that differ from ``net.json``; ``--every 10`` looks at a tenth of the buckets, ``--calls
BUCKET`` prints each call of one with its digest, to be held against those of another build.

``--record`` writes ``net.json`` anew: one set for all kernel sets with fused multiply-add, which
agree, and one for the baseline. That is legitimate when a number that was wrong has become right
and the changelog names it, or when calls are added here; never to make another change pass.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MULTIHEAD_NUM_THREADS", str(os.cpu_count() or 1))

import numpy as np

import net_faces
import net_numpy
from multihead import _native
from net_draws import Digest, Draws

_native.set_little(0)  # threads share all of it, as is recorded
# sets that multiply pairs of bfloat16 compute all else as those beside which they stand
_BESIDE = {"amx": "avx512", "avx512_bf16": "avx512", "neon_bf16": "neon"}

RECORDED = pathlib.Path(__file__).with_name("net.json")
F32, F64 = np.dtype(np.float32), np.dtype(np.float64)
Call = Callable[[Draws, Digest], str]


def _half(call: Any) -> Call:
    return lambda draws, digest: call(draws, digest, draws.choice(net_numpy.HALF))


def _either(call: Any, **options: Any) -> Call:
    return lambda draws, digest: call(draws, digest, draws.choice([F32, F64]), **options)


# a kind: its call, buckets, and calls in each
KINDS: dict[str, tuple[Call, int, int]] = {
    "layer float32": (partial(net_numpy.layer_call, dtype=F32), 20, 40),
    "layer float64": (partial(net_numpy.layer_call, dtype=F64), 20, 40),
    "layer half": (_half(net_numpy.layer_call), 10, 40),
    "ragged": (net_numpy.ragged_call, 10, 40),
    "functional float32": (partial(net_numpy.functional_call, dtype=F32), 10, 50),
    "functional float64": (partial(net_numpy.functional_call, dtype=F64), 10, 50),
    "functional half": (_half(net_numpy.functional_call), 4, 50),
    "few queries": (_either(net_numpy.functional_call, few=True), 4, 50),
    "BNNS": (net_faces.bnns_call, 10, 40),
    "torch module": (net_faces.module_call, 6, 40),
    "torch nested": (net_faces.nested_call, 1, 20),
    "torch attention": (net_faces.torch_attention_call, 4, 40),
}


def buckets(every: int = 1) -> list[str]:
    """The names of the buckets, or of one in `every`."""
    names = [f"{kind} {i}" for kind, (_, count, _) in KINDS.items() for i in range(count)]
    return names[::every]


def beside(isa: str) -> str:
    """The set that computes what is not bfloat16."""
    return _BESIDE.get(isa, isa)


def bucket_digest(name: str, show: bool = False) -> str:
    """The digest of a bucket."""
    before = _native.use_isa(beside(_native.isa()))
    try:
        return _bucket_digest(name, show)
    finally:
        _native.use_isa(before)


def _bucket_digest(name: str, show: bool) -> str:
    total = Digest()
    for i, (one, described) in enumerate(calls_of(name)):
        total.add(one)
        if show:
            print(i, one, described)
    return str(total)


def calls_of(name: str) -> list[tuple[str, str]]:
    """The digest of each call of a bucket, and what it is."""
    call, _, calls = KINDS[name.rsplit(" ", 1)[0]]
    found = []
    for i in range(calls):
        one = Digest()
        described = call(Draws(f"{name}, call {i}"), one)
        found.append((str(one), described))
    return found


def family(isa: str | None = None) -> str:
    """The key in net.json of what a kernel set computes."""
    return "baseline" if (isa or _native.isa()) == "baseline" else "FMA"


def digests(every: int = 1) -> dict[str, str]:
    """The digests of this process's kernel set."""
    return {name: bucket_digest(name) for name in buckets(every)}


def digests_of(isa: str, every: int = 1, timeout: float = 300) -> dict[str, str]:
    """Those of another kernel set, from a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--json", "--every", str(every)],
        env=os.environ | {"MULTIHEAD_ISA": isa},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{isa}: {done.stderr}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def recorded() -> dict[str, dict[str, str]]:
    """What `--record` wrote."""
    kept: dict[str, dict[str, str]] = json.loads(RECORDED.read_text())
    return kept


def differing(found: dict[str, str], isa: str | None = None) -> list[str]:
    """The buckets whose digests are not those recorded."""
    kept = recorded()[family(isa)]
    return [name for name, digest in found.items() if kept.get(name) != digest]


def record() -> None:
    """Write net.json."""
    best = next(isa for isa in _native.available_isas() if isa not in (*_BESIDE, "baseline"))
    kept = {family(isa): digests_of(isa) for isa in (best, "baseline")}
    RECORDED.write_text(json.dumps(kept, indent=1) + "\n")


def main() -> None:
    """Compare, record, or show."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true", help="write net.json anew")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="one bucket in N")
    parser.add_argument("--calls", metavar="BUCKET", help="show each call of a bucket")
    parser.add_argument("--json", action="store_true", help="print the digests")
    chosen = parser.parse_args()
    if chosen.record:
        record()
    elif chosen.calls:
        print(bucket_digest(chosen.calls, show=True))
    elif chosen.json:
        print(json.dumps(digests(chosen.every)))
    else:
        start = time.perf_counter()
        found = digests(chosen.every)
        wrong = differing(found)
        print(*(f"differs: {name}" for name in wrong), sep="\n", end="\n" if wrong else "")
        seconds = time.perf_counter() - start
        print(f"{_native.isa()}: {len(wrong)} of {len(found)} buckets differ, {seconds:.0f} s")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
