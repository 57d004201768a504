"""The engine without Python: its bits on random calls are those recorded in digests.txt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kernel_sets import COMPILER, NATIVE, OURS, ROOT, SETS, finish, kernels_of, objects, start


def stubs(isa: str) -> str:
    """A source in which the other sets are this one, which saves compiling them."""
    others = [name for name in SETS if name != isa]
    lines = [f"const KernelSet& {name}_kernels() {{ return {isa}_kernels(); }}" for name in others]
    declared = f"struct KernelSet;\nconst KernelSet& {isa}_kernels();"
    return "\n".join(("namespace multihead {", declared, *lines, "}")) + "\n"


@pytest.mark.timeout(300)
def test_the_engine_s_bits_are_those_recorded(tmp_path: Path) -> None:
    isa = OURS[0]
    stub, program = tmp_path / "stub.cpp", tmp_path / "p"
    stub.write_text(stubs(isa))
    sources = [x for part in ("engine", "platform") for x in (ROOT / "csrc" / part).glob("*.cpp")]
    made = objects(
        [kernels_of(isa, *SETS[isa]), (NATIVE / "digest.cpp",), *((x,) for x in sources), (stub,)],
        tmp_path,
    )
    finish(start(COMPILER, "-pthread", *made, "-o", program))
    family = "baseline" if isa == "baseline" else "FMA"
    kept = (NATIVE / "digests.txt").read_text().splitlines()
    for threads in ("1", "3"):
        done = subprocess.run(
            [program, threads],
            env=os.environ | {"MULTIHEAD_ISA": isa},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [x for x in kept if x.startswith(f"{family}:")]
