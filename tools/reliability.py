"""Measure what the package promises of faults: `python tools/reliability.py BUILD`.

Runs the tests of each promise, and the programs behind it, and writes what they found to
`docs/reliability.json` and, from there, into `docs/reliability.md`. `--again TARGET` runs some of
the programs once more and keeps the rest of the file. With `--check` nothing is run or written,
and the exit code is 1 if the page does not say what the file does, or the file tells of a failure.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe  # noqa: E402
from benchmarks.markdown import table, wrapped  # noqa: E402

PAGE, FOUND = ROOT / "docs" / "reliability.md", ROOT / "docs" / "reliability.json"
RECORD, PLANTED = ROOT / "fuzz" / "record.json", ROOT / "docs" / "planted.json"
REGION = re.compile(r"(<!-- reliability: (\w+) -->\n)(.*?)(<!-- /reliability -->)", re.DOTALL)


@dataclass(frozen=True)
class Promise:
    """What is promised, in a few words, and the test files that hold it."""

    words: str
    tests: tuple[str, ...]


PROMISES = (
    Promise(
        "wrong arguments: an error that changes nothing",
        ("errors", "attributes", "bnns_misuse", "bnns_overlaps", "bnns_descriptors"),
    ),
    Promise("sizes beyond any memory, and beyond 2³¹", ("sizes",)),
    Promise("memory that runs out, at every allocation", ("out_of_memory",)),
    Promise(
        "threads on shared and own objects",
        ("threads", "concurrent_calls", "concurrent_filters", "torch_concurrent", "beside_torch"),
    ),
    Promise("forks, and interpreters that end", ("fork", "interpreter")),
    Promise("Ctrl-C ends a call within 0.2 s", ("interruption",)),
    Promise("numbers at the ends of floats, and none", ("numbers", "masks")),
    Promise("files of strangers", ("hostile_files", "checkpoint", "state")),
    Promise("writers that are killed, disks that are full", ("saving",)),
    Promise(
        "the same bits: threads, kernel sets, runs",
        ("determinism", "kernel_sets", "net", "native_digest"),
    ),
    Promise("processors: what is detected, and chosen", ("processors",)),
)
_COUNTS = ("-o", "junit_family=xunit1")  # which keeps what tests say that they counted
# what is run besides: a target of the Makefile, and the lines of its output that count
TARGETS = {
    "sanitize": r"nothing found$|\bpassed\b",
    "sanitize-threads": r"no race$|\bpassed\b",
    "sanitize-integer": r"nothing found$|\bpassed\b",
    "processors": r"\bpassed\b",
}


def run_tests(promise: Promise) -> dict[str, Any]:
    """Run the tests of a promise; count them, and what they say that they counted."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        files = [f"tests/test_{name}.py" for name in promise.tests]
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *_COUNTS, f"--junitxml={report}", *files],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.monotonic() - began
        suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counted: dict[str, int] = {}
    for told in suite.iter("property"):
        name = told.get("name", "")
        counted[name] = counted.get(name, 0) + int(told.get("value", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return {
        "promise": promise.words,
        "files": list(promise.tests),
        "tests": int(suite.get("tests", 0)) - int(suite.get("skipped", 0)),
        "failed": failed,
        "counted": counted,
        "seconds": round(seconds),
    }


def run_target(name: str, build: str) -> dict[str, Any]:
    """Run a target of the Makefile; keep the lines that say what it found."""
    began = time.monotonic()
    done = subprocess.run(
        ["make", name, f"BUILD={build}"], cwd=ROOT, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if re.search(TARGETS[name], line)]
    return {
        "target": name,
        "status": done.returncode,
        "lines": [re.sub(r",? in [\d.:() s]+$", "", line.strip("= ")) for line in lines],
        "seconds": round(time.monotonic() - began),
    }


def tests(found: dict[str, Any]) -> str:
    """Tell the tests of each promise."""
    rows = []
    for of in found["promises"]:
        counted = "; ".join(f"{n:,} {name}" for name, n in of["counted"].items())
        files = ", ".join(f"`test_{name}`" for name in of["files"])
        result = f"{of['tests']:,}" + (f", {of['failed']} failed" if of["failed"] else "")
        rows.append([of["promise"], files, result, counted or "–"])
    return table(["promise", "tests/", "tests", "in them"], rows)


def programs(found: dict[str, Any]) -> str:
    """Tell what the sanitizers and processors said."""
    rows = [
        [f"`make {of['target']}`", "; ".join(of["lines"]) if of["status"] == 0 else "failed"]
        for of in found["targets"]
    ]
    return table(["run", "found"], rows)


def fuzzed(_: dict[str, Any]) -> str:
    """Tell how many inputs each fuzzer has run, on which processors."""
    record = json.loads(RECORD.read_text())
    rows = [[f"`{name}`", f"{sum(of.values()):,}"] for name, of in record["fuzzers"].items()]
    rows.append(["all", f"{record['total']:,}"])
    kinds = sorted({kind for of in record["fuzzers"].values() for kind in of})
    calls = "".join(f" `{name}` made {n:,} calls in its." for name, n in record["calls"].items())
    return table(["fuzzer", "inputs"], rows) + "\n\n" + wrapped(f"On {'; '.join(kinds)}.{calls}")


def planted(_: dict[str, Any]) -> str:
    """Tell who found the faults that were planted."""
    rows = [
        [of["fault"], of["kind"], f"`{of['file']}`", of["by"] or "nobody"]
        for of in json.loads(PLANTED.read_text())
    ]
    return table(["fault", "kind", "where", "found by"], rows)


def machine(found: dict[str, Any]) -> str:
    """Tell what the tests ran on."""
    of = found["machine"]
    return wrapped(f"{of['processor']}, kernel set {of['isa']}; {of['date'][:10]}.")


def page(text: str, found: dict[str, Any]) -> str:
    """Return the page with the figures of a file."""
    parts = {f.__name__: f for f in (tests, programs, fuzzed, planted, machine)}
    return REGION.sub(lambda m: f"{m[1]}{parts[m[2]](found)}\n{m[4]}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write, or check what was written."""
    parser = argparse.ArgumentParser(prog="python tools/reliability.py", description=__doc__)
    parser.add_argument("build", nargs="?", default="build", help="where objects are kept")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--check", action="store_true", help="only compare the page with the files")
    only.add_argument("--page", action="store_true", help="only write the page from the files")
    only.add_argument("--again", nargs="+", choices=TARGETS, help="only run these programs")
    options = parser.parse_args(arguments)
    if options.again:
        found = json.loads(FOUND.read_text())
        for i, name in enumerate(of["target"] for of in found["targets"]):
            if name in options.again:
                found["targets"][i] = run_target(name, options.build)
        FOUND.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    elif not options.check and not options.page:
        found = {
            "machine": describe(2),
            "promises": [run_tests(promise) for promise in PROMISES],
            "targets": [run_target(name, options.build) for name in TARGETS],
        }
        FOUND.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    found = json.loads(FOUND.read_text())
    if not options.check:
        PAGE.write_text(page(PAGE.read_text(), found))
    failed = [of["promise"] for of in found["promises"] if of["failed"] or not of["tests"]]
    failed += [of["target"] for of in found["targets"] if of["status"] or not of["lines"]]
    failed += [of["fault"] for of in json.loads(PLANTED.read_text()) if not of["by"]]
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    if PAGE.read_text() != page(PAGE.read_text(), found):
        print(f"{PAGE.name}: not what {FOUND.name} says; run make reliability", file=sys.stderr)
        return 1
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
