"""Run the fuzzers, two at a time: ``python -m fuzz.run BUILD_DIR``, behind ``make fuzz``.

Each runs for some seconds from its inputs in ``fuzz/corpus``. What one finds is kept in the build
directory, and how to replay it is printed; the exit status is then not 0. ``--record`` adds the
inputs that were run to ``fuzz/record.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fuzz import NATIVE, PYTHON, ROOT

RECORD = ROOT / "fuzz" / "record.json"
CORPUS = ROOT / "fuzz" / "corpus"
TIMEOUT = 30  # seconds for one input
GRACE = 240  # and for what a process does before and after its inputs
MEMORY = 3072  # MiB
_ASAN = "allocator_may_return_null=1:malloc_context_size=4:quarantine_size_mb=32"
LONGEST = 256  # bytes of an input


def fuzz(name: str, seconds: int, build: Path, seed: int) -> dict[str, Any]:
    """Run one fuzzer; return how many inputs it ran, and what it found."""
    grown, kept = build / "grown" / name, build / "found" / name
    for folder in (grown, kept):
        folder.mkdir(parents=True, exist_ok=True)
    words = [
        *(f"-max_total_time={seconds}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}"),
        *(f"-max_len={LONGEST}", f"-seed={seed}", "-print_final_stats=1", "-len_control=0"),
        "-entropic=0",  # a third of the time of short inputs
        *(f"-artifact_prefix={kept}/", str(grown)),
    ]
    if (CORPUS / name).is_dir():
        words.append(str(CORPUS / name))
    own = {"FUZZ_BUILD": str(build), "ASAN_OPTIONS": _ASAN}
    log = build / f"{name}.log"
    before = set(kept.iterdir())
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "fuzz", name, *words],
            cwd=ROOT,
            env=os.environ | own,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds + GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            status = -9
    text = log.read_text(errors="replace")
    runs = re.findall(r"number_of_executed_units: (\d+)", text) or re.findall(
        r"^#(\d+)\s", text, re.M
    )
    found = sorted(set(kept.iterdir()) - before)
    return {
        "name": name,
        "runs": int(runs[-1]) if runs else 0,
        "failed": status != 0 or bool(found),
        "found": [str(x) for x in found],
        "end": text[-3000:] if status else "",
    }


def machine() -> str:
    """The processor, and the best kernel set that it runs."""
    from multihead import _native

    name = platform.processor() or platform.machine()
    try:
        listed = Path("/proc/cpuinfo").read_text()
        of = {
            key: re.search(rf"^{key}\s*:\s*(.+)$", listed, re.M)
            for key in ("model name", "cpu family", "model")
        }
        if all(of.values()):
            model, family, number = (x.group(1) for x in of.values() if x)
            name = f"{model}, family {family} model {number}"
    except OSError:
        pass
    return f"{name}: {_native.available_isas()[0]}"


def record(results: list[dict[str, Any]]) -> None:
    """Add what was run to the tally."""
    tally = json.loads(RECORD.read_text()) if RECORD.exists() else {"total": 0, "fuzzers": {}}
    here = machine()
    for result in results:
        of = tally["fuzzers"].setdefault(result["name"], {})
        of[here] = of.get(here, 0) + result["runs"]
    tally["fuzzers"] = {name: tally["fuzzers"][name] for name in sorted(tally["fuzzers"])}
    tally["total"] = sum(sum(of.values()) for of in tally["fuzzers"].values())
    RECORD.write_text(json.dumps(tally, indent=1) + "\n")


def main() -> int:
    """Run them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("build", type=Path, help="where programs, logs and findings go")
    parser.add_argument("--seconds", type=int, default=60, help="of each fuzzer")
    parser.add_argument("--fuzzers", default="", help="names of some: all, if none is given")
    parser.add_argument("--at-once", type=int, default=2, help="processes")
    parser.add_argument("--record", action="store_true", help="add to fuzz/record.json")
    chosen = parser.parse_args()
    names = chosen.fuzzers.replace(",", " ").split() or [*NATIVE, *PYTHON]
    for name in names:
        if name not in (*NATIVE, *PYTHON):
            raise SystemExit(
                f"--fuzzers: expected some of {', '.join((*NATIVE, *PYTHON))}, got {name}"
            )
    build = chosen.build.resolve()
    if set(names) & set(NATIVE):
        subprocess.run([ROOT / "fuzz/native/build.sh", str(build), sys.executable], check=True)
    build.mkdir(parents=True, exist_ok=True)
    seed = int(time.time()) % 2**31 + 1
    with ThreadPoolExecutor(chosen.at_once) as pool:
        running = [pool.submit(fuzz, name, chosen.seconds, build, seed) for name in names]
        results = [x.result() for x in running]
    for result in results:
        print(f"{result['name']}: {result['runs']} inputs, {len(result['found'])} found")
        if result["failed"]:
            print(result["end"])
        for path in result["found"]:
            print(f"  {path}\n  replay: FUZZ_BUILD={build} python -m fuzz {result['name']} {path}")
    if chosen.record:
        record(results)
    return int(any(result["failed"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
