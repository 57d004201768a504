"""The engine without Python: its bits on random calls are those recorded in digests.txt."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kernel_sets import (
    COMPILER,
    NATIVE,
    OF_PAIRS,
    OURS,
    PAIRS,
    ROOT,
    SETS,
    finish,
    kernels_of,
    objects,
    start,
)


def stubs(isa: str) -> str:
    """A source in which the sets that are not compiled are another one."""
    others = [name for name in (*SETS, *PAIRS) if name not in (isa, *OF_PAIRS)]
    lines = [f"const KernelSet& {name}_kernels() {{ return {isa}_kernels(); }}" for name in others]
    declared = f"struct KernelSet;\nconst KernelSet& {isa}_kernels();"
    return "\n".join(("namespace multihead {", declared, *lines, "}")) + "\n"


@pytest.mark.timeout(400)
def test_the_engine_s_bits_are_those_recorded(tmp_path: Path) -> None:
    isa = OURS[0]
    stub, program = tmp_path / "stub.cpp", tmp_path / "p"
    stub.write_text(stubs(isa))
    sources = [x for part in ("engine", "platform") for x in (ROOT / "csrc" / part).glob("*.cpp")]
    kernels = [kernels_of(isa, *SETS[isa])]
    for name in OF_PAIRS:
        plain, width, *options = PAIRS[name]
        options.append(f"-DMULTIHEAD_PLAIN={plain}")
        kernels.append(kernels_of(name, width, *options, source="bfloat16"))
    made = objects(
        [*kernels, (NATIVE / "digest.cpp",), *((x,) for x in sources), (stub,)], tmp_path
    )
    finish(start(COMPILER, "-pthread", *made, "-o", program))
    family = "baseline" if isa == "baseline" else "FMA"
    kept = (NATIVE / "digests.txt").read_text().splitlines()
    runs = [(threads, isa) for threads in ("1", "3", "lent")]
    for threads, name in (*runs, *((n, x) for x in OF_PAIRS for n in "13")):
        done = subprocess.run(
            [program, threads],
            env=os.environ | {"MULTIHEAD_ISA": name},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = done.stdout.splitlines()
        assert found == [x for x in kept if x.split(":")[0] in (family, name)]
