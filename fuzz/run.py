"""Run the fuzzers, two at a time: ``python -m fuzz.run BUILD_DIR``, behind ``make fuzz``.

Each runs for some seconds from its inputs in ``fuzz/corpus``. What one finds is kept in the build
directory, and how to replay it is printed; the exit status is then not 0. ``--record`` adds the
inputs that were run to ``fuzz/record.json``. ``--sanitized build/sanitize/address``, after ``make
sanitize``, lets Python's fuzzers call the package that was built there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
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
_ASAN = ":".join(
    (
        *("allocator_may_return_null=1", "max_allocation_size_mb=2048"),
        *("malloc_context_size=4", "quarantine_size_mb=32"),
    )
)
LONGEST = 256  # bytes of an input


def compiled(build: Path) -> Path:
    """Compile the fuzzers of the C functions."""
    # fuzzers compute in one thread; compilers need not
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [ROOT / "fuzz/native/build.sh", str(build), sys.executable]
    subprocess.run(command, env=own, check=True)
    return build


def sanitized(folder: Path) -> dict[str, str]:
    """Return what makes Python import the package under AddressSanitizer that a folder has."""
    if not (folder / "python/multihead").is_dir():
        raise SystemExit(f"--sanitized: {folder} has no python/multihead; `make sanitize` makes it")
    libraries = []
    for compiler, name in (
        ("gcc", "libasan.so"),
        ("gcc", "libubsan.so"),
        ("g++", "libstdc++.so.6"),
    ):
        command = [compiler, f"-print-file-name={name}"]
        libraries.append(subprocess.check_output(command, text=True).strip())
    return {"PYTHONPATH": str(folder / "python"), "LD_PRELOAD": ":".join(libraries)}


def _limited() -> None:
    most = (MEMORY - 512) << 20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def fuzz(
    name: str, seconds: int, build: Path, seed: int, environment: dict[str, str]
) -> dict[str, Any]:
    """Run one fuzzer; return how many inputs it ran, and what it found."""
    grown, kept = build / "grown" / name, build / "found" / name
    for folder in (grown, kept):
        folder.mkdir(parents=True, exist_ok=True)
    words = [
        *(f"-max_total_time={seconds}", f"-timeout={TIMEOUT}", f"-rss_limit_mb={MEMORY}"),
        f"-report_slow_units={TIMEOUT}",
        *(f"-max_len={LONGEST}", f"-seed={seed}", "-print_final_stats=1", "-len_control=0"),
        "-entropic=0",  # a third of the time of short inputs
        *(f"-artifact_prefix={kept}/", str(grown)),
    ]
    seeds = CORPUS / name.removesuffix("_shipped")
    if seeds.is_dir():
        words.append(str(seeds))
    asan = _ASAN + ":detect_leaks=0" * (name in PYTHON)  # Python's own are not our business
    own = {"FUZZ_BUILD": str(build), "ASAN_OPTIONS": asan}
    if name in PYTHON:
        own |= environment
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
            preexec_fn=_limited if name == "bnns_shipped" else None,  # whose malloc has no limit
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
        "calls": sum(map(int, re.findall(r"^calls: (\d+)", text, re.M))),
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
    tally = json.loads(RECORD.read_text())
    here = machine()
    for result in results:
        of = tally["fuzzers"].setdefault(result["name"], {})
        of[here] = of.get(here, 0) + result["runs"]
        if result["calls"]:  # in them, where the fuzzer counts these
            calls = tally["calls"]
            calls[result["name"]] = calls.get(result["name"], 0) + result["calls"]
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
    parser.add_argument("--sanitized", type=Path, metavar="FOLDER", help="see above")
    chosen = parser.parse_args()
    names = chosen.fuzzers.replace(",", " ").split() or [*NATIVE, *PYTHON]
    for name in names:
        if name not in (*NATIVE, *PYTHON):
            raise SystemExit(
                f"--fuzzers: expected some of {', '.join((*NATIVE, *PYTHON))}, got {name}"
            )
    build = chosen.build.resolve()
    if set(names) & set(NATIVE):
        compiled(build)
    build.mkdir(parents=True, exist_ok=True)
    environment = sanitized(chosen.sanitized.resolve()) if chosen.sanitized else {}
    seed = int(time.time()) % 2**31 + 1
    with ThreadPoolExecutor(chosen.at_once) as pool:
        running = [
            pool.submit(fuzz, name, chosen.seconds, build, seed, environment) for name in names
        ]
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
