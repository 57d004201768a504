"""``multihead check``: this installation, on this CPU, beside the float64 oracle."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import multihead as mh
from multihead import _native
from multihead.cli import machine
from multihead.cli.check import bits, c_library, differences, functions, layers
from multihead.cli.check.finding import Finding
from multihead.cli.check.problem import OUTPUTS, Problem
from multihead.cli.console import Cell, Console, progress
from multihead.cli.elements import DTYPES
from multihead.tolerance import CENTRAL_DIFFERENCES, FORWARD, GRADIENT, error, tolerance

DESCRIPTION = (
    "Hold this installation, on this CPU, to the layer in plain float64 NumPy, "
    "multihead.reference: results and gradients in every dtype on every kernel set that the CPU "
    "runs, the bits for any number of threads, and the C library. One line a part: the largest "
    "error beside its tolerance, where it comes closest. The exit status is 1 if a part is bad. It "
    "takes seconds."
)
GOOD, BAD, UNFINISHED = "good", "bad", "unfinished"
SECONDS = 25.0  # after which nothing further is begun

# parts that are compared with an oracle, and what makes their problems for a dtype
PARTS: dict[str, Callable[[str], list[Problem]]] = {
    "oracle": differences.oracle,
    "layer": layers.plain,
    "masks": layers.masks,
    "dropout": layers.dropout,
    "modern": layers.modern,
    "ragged": layers.ragged,
    "KV cache": layers.kv_cache,
    "functional": functions.functional,
    "BNNS in C": c_library.bnns,
}
BITS = ("bits, any threads", "bits, repeated", "bits, kernel sets")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command; it has none of its own."""


def run(options: argparse.Namespace, console: Console) -> int:
    """Check everything and write the verdict."""
    start, findings = time.monotonic(), []
    with progress("checking", len(PARTS) + 1) as step:
        for done, found in enumerate(_findings(start), 1):
            findings += found
            step(done)
    document: dict[str, Any] = {
        "verdict": _verdict(findings),
        "version": mh.__version__,
        "machine": machine.description(),
        "kernel_sets": _native.available_isas(),
        "dtypes": DTYPES,
        "seconds": round(time.monotonic() - start, 2),
        "parts": [finding.document() for finding in findings],
    }
    if console.document(options, document):
        _write(console, findings, document)
    return 0 if document["verdict"] == GOOD else 1


def _verdict(findings: list[Finding]) -> str:
    if all(finding.good for finding in findings):
        return GOOD
    return UNFINISHED if all(each.good or each.late for each in findings) else BAD


def _findings(start: float) -> Iterator[list[Finding]]:
    def late() -> bool:
        return time.monotonic() - start > SECONDS

    for part, make in PARTS.items():
        yield _compared(part, make, late)
    yield _same_bits(late)


def _compared(
    part: str, make: Callable[[str], list[Problem]], late: Callable[[], bool]
) -> list[Finding]:
    """Compare a part's problems with their oracles, in every dtype on every kernel set."""
    outputs, gradients = Finding(f"{part}, results"), Finding(f"{part}, gradients")
    sets = _native.available_isas() if part != "oracle" else ["NumPy"]
    try:
        for dtype in DTYPES:
            outputs.late = outputs.late or late()
            for problem in [] if outputs.late else make(dtype):
                for isa in sets:
                    for name, actual in _run(problem, isa).items():
                        kind = FORWARD if name in OUTPUTS else GRADIENT
                        bound = tolerance(kind, dtype) if part != "oracle" else CENTRAL_DIFFERENCES
                        reached = error(actual, problem.expected[name])
                        finding = outputs if name in OUTPUTS else gradients
                        finding.add(name, reached, bound, (dtype, isa))
    except Exception as fault:  # whatever it is, the check goes on
        outputs.faults.append(f"{type(fault).__name__}: {fault}")
    gradients.late = outputs.late and gradients.comparisons > 0
    return [each for each in (outputs, gradients) if each.comparisons or each.faults or each.late]


def _run(problem: Problem, isa: str) -> dict[str, Any]:
    before = _native.isa(), mh.get_num_threads()
    mh.set_num_threads(1)  # that more give the same bits is a part of its own
    if isa in _native.available_isas():
        _native.use_isa(isa)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mh.MaskWarning)
            return problem.run()
    finally:
        _native.use_isa(before[0])
        mh.set_num_threads(before[1])


def _same_bits(late: Callable[[], bool]) -> list[Finding]:
    threads, again, sets = (Finding(part) for part in BITS)
    try:
        for dtype in DTYPES:
            if late():
                threads.late = again.late = sets.late = True
                break
            alike: dict[str, str] = {}
            for isa in _native.available_isas():
                (_, first), (_, second), *others = bits.hashes(isa, dtype)
                place = f"in {dtype} on {isa}"
                again.same(first == second, f"a second call {place}")
                for number, found in others:
                    threads.same(found == first, f"{number} threads {place}")
                if dtype in bits.PROMISED and isa not in bits.INEXACT:
                    alike[isa] = first
            for isa, found in alike.items():
                sets.same(found == next(iter(alike.values())), f"{isa} in {dtype}")
    except Exception as fault:  # whatever it is, the check goes on
        threads.faults.append(f"{type(fault).__name__}: {fault}")
    return [threads, again] + [sets] * bool(sets.comparisons or sets.late)


def _write(console: Console, findings: list[Finding], document: dict[str, Any]) -> None:
    console.line(
        (f"multihead {document['version']}", "bold"), f", {document['machine']['processor']}"
    )
    console.say(f"kernel sets: {', '.join(document['kernel_sets'])}")
    console.line()
    head: list[Cell] = ["part", "closest in", "error", "tolerance", ""]
    console.table([head, *map(_row, findings)], right=(2, 3))
    console.line()
    bad = [finding for finding in findings if not finding.good]
    for finding in bad:
        for fault in finding.faults:
            console.say(f"{finding.part}: {fault}")
    said = f"{sum(finding.comparisons for finding in findings)} comparisons"
    took = f"{said} in {document['seconds']:.1f} s"
    if document["verdict"] == BAD:
        console.say(f"Bad: {len(bad)} of {len(findings)} parts; {took}.", "bold red")
    elif document["verdict"] == UNFINISHED:
        late = f"{len(bad)} of {len(findings)} parts had no time, nothing is wrong in the others"
        console.say(f"Unfinished: {late}; {took}. Is the machine busy?", "bold yellow")
    else:
        console.say(f"Good: {took}.", "bold green")


def _row(finding: Finding) -> list[Cell]:
    verdict = ("ok", "green") if finding.good else ("BAD", "bold red")
    verdict = ("late", "yellow") if finding.late else verdict
    if finding.error is None or finding.tolerance is None:
        return [finding.part, "", "", "", verdict]
    figures = f"{finding.error:.1e}", f"{finding.tolerance:.1e}"
    return [finding.part, finding.dtype, *figures, verdict]
