"""Plant faults in the engine and see who finds them: `python tools/planted.py BUILD PYTHON`.

Each of `tools/planted_faults.py` is written into a copy of the sources, which is compiled, without
much optimisation, and handed to the tests; some, which only a sanitizer can see, to that. The first
test that fails is noted in `docs/planted.json`, from which `tools/reliability.py` makes a table.
`--only WORD` takes the faults whose words contain it, `--missing` those for which the file names
nobody. The exit code is 1 if one was not found.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planted_faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]
FOUND = ROOT / "docs" / "planted.json"
# what compares with the oracle, or looks at what is refused; the net of recorded bits comes last,
# since it sees everything
TESTS = [
    *("score_rules", "layer_options", "functional", "kv_cache", "packed", "ragged", "merging"),
    *("bnns", "bnns_misuse", "bnns_overlaps", "errors", "sizes", "state", "half_keys", "dropout"),
    *("few_queries", "bfloat16", "half_arrays", "gradients", "attention_core", "masks", "numbers"),
    *("determinism", "concurrent_calls", "torch_functional", "torch_layer_options", "torch_varlen"),
]
LIMIT = 600  # seconds for the tests of one fault
# kernel sets that the tests do without: a fault is in those that users have, too
WITHOUT = "not (isa-wide or isa-grouped or isa-emulated_dot or isa-emulated_amx or isa-baseline)"
# of each sanitizer: what it says of a fault, and a test that it runs besides
SANITIZERS = {
    "address": (r"ERROR: AddressSanitizer: ([\w-]+)", "tests/test_functional.py"),
    "threads": (r"WARNING: ThreadSanitizer: ([\w -]+)", "tests/test_concurrent_calls.py"),
}


@dataclass(frozen=True)
class Tree:
    """A copy of the sources, and what is compiled of it."""

    root: Path
    python: str

    @property
    def sources(self) -> Path:
        """Where the copy lies."""
        return self.root / "sources"

    @property
    def stage(self) -> Path:
        """Where the package that is compiled of it lies."""
        return self.root / "stage"

    def copy(self) -> None:
        """Copy what Git knows and what is new, as it lies here, where it differs."""
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.check_output(listed, cwd=ROOT, text=True).split("\0")
        for name in filter(None, names):
            here, there = ROOT / name, self.sources / name
            if not here.is_file() or (there.is_file() and there.read_bytes() == here.read_bytes()):
                continue
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here, there)
        shutil.rmtree(self.stage, ignore_errors=True)
        shutil.copytree(ROOT / "src", self.stage, ignore=shutil.ignore_patterns("*.so"))

    def build(self) -> None:
        """Compile the package into the stage."""
        objects = str(self.root / "objects")
        options = {
            "CMAKE_BUILD_TYPE": "Quick",
            "CMAKE_CXX_FLAGS_QUICK": "-O1 -DNDEBUG",
            "CMAKE_INSTALL_PREFIX": str(self.stage / "multihead"),
            "MULTIHEAD_PYTHON": "ON",
            "Python_EXECUTABLE": self.python,
        }
        words = [f"-D{name}={value}" for name, value in options.items()]
        tools = Path(self.python).parent
        path = os.pathsep.join([str(tools), os.environ["PATH"]])
        for command in (
            ["cmake", "-S", str(self.sources), "-B", objects, "-G", "Ninja", *words],
            ["cmake", "--build", objects],
            ["cmake", "--install", objects],
        ):
            done = subprocess.run(
                command, env=os.environ | {"PATH": path}, capture_output=True, text=True
            )
            if done.returncode:
                raise SystemExit(
                    f"{' '.join(command)}:\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
                )


def plant(tree: Tree, fault: Fault) -> None:
    """Write a fault into the copy."""
    text = (ROOT / fault.file).read_text()
    if text.count(fault.right) != 1:
        raise SystemExit(f"{fault.file}: expected once what {fault.words!r} replaces")
    (tree.sources / fault.file).write_text(text.replace(fault.right, fault.wrong))


def run_tests(tree: Tree) -> str:
    """Run the tests on the stage; return the first that fails, or nothing."""
    files = [f"tests/test_{name}.py" for name in (*TESTS, "net")]
    quick = ["-x", "-q", "-k", WITHOUT, "--numprocesses", "2", "--dist", "loadfile"]
    quick.append("--max-worker-restart=0")  # a crash is a finding, too
    process = subprocess.Popen(
        [tree.python, "-m", "pytest", "-p", "no:cacheprovider", *quick, *files],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tree.stage)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return "a test that does not end"
    if process.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\w+)\.py(?:::(\w+))?", output, re.M)
    crashed = re.search(r"worker '\w+' crashed while running 'tests/(\w+)\.py::(\w+)", output)
    if crashed or failed:
        first = crashed or failed
        assert first is not None
        return f"`{'::'.join(filter(None, first.groups()))}`" + (" (crash)" if crashed else "")
    raise SystemExit(f"pytest ended with {process.returncode}:\n{output[-4000:]}")


def run_sanitizer(tree: Tree, name: str) -> str:
    """Compile the copy under a sanitizer and run it; return what that says."""
    pattern, test = SANITIZERS[name]
    script = tree.sources / "tools" / "sanitize" / f"{name}.sh"
    done = subprocess.run(
        [script, str(tree.root / name), tree.python, test],
        cwd=tree.sources,
        capture_output=True,
        text=True,
    )
    said = re.search(pattern, done.stdout + done.stderr)
    return f"`make sanitize{'-threads' * (name == 'threads')}`: {said[1].strip()}" if said else ""


def find(tree: Tree, fault: Fault) -> str:
    """Plant a fault, return who finds it, and take it out again."""
    plant(tree, fault)
    try:
        if fault.finder != "tests":
            return run_sanitizer(tree, fault.finder)
        tree.build()
        return run_tests(tree)
    finally:
        shutil.copy(ROOT / fault.file, tree.sources / fault.file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plant all of them, or some."""
    parser = argparse.ArgumentParser(prog="python tools/planted.py", description=__doc__)
    parser.add_argument("build", type=Path, help="where objects are kept")
    parser.add_argument("python", help="that has the package with its extra `test`")
    some = parser.add_mutually_exclusive_group()
    some.add_argument("--only", metavar="WORD", help="faults whose words contain it")
    some.add_argument(
        "--missing", action="store_true", help="faults of which the file names no finder"
    )
    options = parser.parse_args(arguments)
    told = {of["fault"]: of for of in json.loads(FOUND.read_text())} if FOUND.exists() else {}
    chosen = [f for f in FAULTS if not options.only or options.only in f.words]
    if options.missing:
        chosen = [f for f in FAULTS if not told.get(f.words, {}).get("by")]
    tree = Tree(options.build.resolve() / "planted", str(Path(options.python).absolute()))
    tree.copy()
    tree.build()
    if len(chosen) == len(FAULTS) and (wrong := run_tests(tree)):
        raise SystemExit(f"without a fault, {wrong} fails")
    for fault in chosen:
        began = time.monotonic()
        by = find(tree, fault)
        seconds = round(time.monotonic() - began)
        print(f"{fault.words} ({fault.file}): {by or 'NOT FOUND'}, {seconds} s", flush=True)
        told[fault.words] = {
            "fault": fault.words,
            "kind": fault.kind,
            "file": fault.file,
            "by": by,
        }
        ordered = [told[f.words] for f in FAULTS if f.words in told]
        FOUND.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    return int(not all(told[f.words]["by"] for f in chosen))


if __name__ == "__main__":
    sys.exit(main())
