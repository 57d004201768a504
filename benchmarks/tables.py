"""Write the documents' figures from the results in ``benchmarks/results``.

``python -m benchmarks.tables`` rewrites what stands between ``<!-- benchmark: NAME -->`` and
``<!-- /benchmark -->``; with ``--check`` it changes nothing and fails if something would change.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from benchmarks.accuracy import page
from benchmarks.accuracy.verdict import MAXIMUM, RELATIVE
from benchmarks.cases import SHAPES
from benchmarks.contenders import OURS
from benchmarks.markdown import table, wrapped
from benchmarks.measure import FULL
from benchmarks.plan import page as plans
from benchmarks.targets import FACES
from benchmarks.targets.target import QUIET
from benchmarks.workloads import WORKLOADS, Workload

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENTS = (
    "README.md",
    "docs/torch.md",
    "docs/jax.md",
    "docs/performance.md",
    "docs/accuracy.md",
    "docs/scaling.md",
)
# the files in RESULTS: a run of each face, the errors, how lengths cost, and what plans say
FILES = (*FACES, "accuracy", "scaling", "plan")
REGION = re.compile(r"(<!-- benchmark: ([\w-]+) -->\n)(.*?)(<!-- /benchmark -->)", re.DOTALL)

# the README's columns: a heading and the mode of the grid
COLUMNS = {
    "infer": "infer",
    "infer, padded": "infer + padding",
    "train": "train",
    "train, dropout 0.1": "train + dropout",
    "train, weights": "train + weights",
}
MODELS = {
    "encoder": "encoder, padded",
    "transformer": "`torch.nn.Transformer`",
    "vit": "ViT-B's layers",
}
NOTHING, BUSY = "–", "busy"
BUSY_MEANS = (
    "busy: other programs took a part of the processors meanwhile, so the figure is not told."
)
UNTOLD = (NOTHING, BUSY)

Results = Mapping[str, Any]


def origin(found: Results) -> str:
    """Say in a sentence what the figures were measured on, and how far they can be trusted."""
    machine, granted = found["machine"], found["granted_processor_time"]
    versions = machine["versions"]
    other = ("JAX", "jax") if found["settings"].get("face") == "jax" else ("PyTorch", "torch")
    text = (
        f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads each; "
        f"{other[0]} {versions[other[1]]}, NumPy {versions['numpy']}; {machine['date'][:10]}"
    )
    budget = found["settings"]["seconds_for_a_cell"]
    if found["settings"]["quick"]:
        text += "; a quick run, a sample of the whole"
    elif budget < FULL.budget:
        text += f"; a shorter run, {budget:g} s for a cell"
    if granted < QUIET:
        text += f"; **the machine was busy ({granted:.0%} of it was ours)**"
    return wrapped(text + ".")


def grid(results: Mapping[str, Results]) -> str:
    """Tell the ratios of the grid, their mean, and shares and memory if they were measured."""
    found = results["numpy"]
    ratios = {(tuple(cell["shape"].values()), cell["mode"]): _cell(cell) for cell in found["cells"]}
    rows = []
    for shape in SHAPES:
        size = (shape.batch, shape.length, shape.embed_dim, shape.num_heads)
        row = [ratios.get((size, mode), NOTHING) for mode in COLUMNS.values()]
        if set(row) != {NOTHING}:
            rows.append([str(shape), *row])
    told = []
    raced = [cell["torch_over_ours"] for cell in found["cells"] if _cell(cell) not in UNTOLD]
    if raced and len(raced) == len(ratios):
        told.append(
            f"The geometric mean over {len(raced)} cells is {geometric_mean(raced):.2f}, "
            f"the lowest {min(raced):.2f}."
        )
    values = _values(found)
    shares = [value for name, value in values.items() if re.fullmatch(r"share-\d+", name)]
    if shares:
        span = _span(shares, "{:.0%}")
        told.append(f"Plain training at L ≥ 512 reaches {span} of the limit of the FMA units.")
    memory = values.get("memory")
    if memory is not None:
        told.append(
            "A training step with dropout at L = S = 8192, E = 512, H = 8 needs "
            f"{memory:.1f} times the memory of its input, where score matrices would need several "
            "gigabytes."
        )
    closing = [wrapped(" ".join(told))] if told else []
    return "\n\n".join(
        [origin(found), table(["(N, L, E, H)", *COLUMNS], rows), *_busy(rows), *closing]
    )


def models(results: Mapping[str, Results]) -> str:
    """Tell the ratios of whole models, and how far results are apart."""
    found = results["torch"]
    values, written = _values(found), _written(found)
    rows = []
    for work in WORKLOADS:
        name = f"torch-{work.model}-{work.length}"
        row = [written.get(f"{name}-{part}", NOTHING) for part in ("eval", "train", "attention")]
        if set(row) != {NOTHING}:
            rows.append([_model(work), *row])
    heading = ["model", "eval", "step of AdamW", "attention in that step"]
    apart = {
        word: max((v for name, v in values.items() if name.endswith(word)), default=None)
        for word in ("outputs", "gradients", "losses")
    }
    told = {
        "outputs": "outputs by at most {:.0e} of the largest entry",
        "gradients": "gradients by {:.0e}",
        "losses": "the losses of 50 steps without dropout by {:.0e}",
    }
    parts = [told[word].format(value) for word, value in apart.items() if value is not None]
    closing = [wrapped(f"The two differ: {', '.join(parts)}.")] if parts else []
    return "\n\n".join([origin(found), table(heading, rows), *_busy(rows), *closing])


def in_models(results: Mapping[str, Results]) -> str:
    """Tell in a sentence the ratios with `accelerate`."""
    values = _values(results["torch"])
    told = {"-train": "whole steps of AdamW", "-attention": "attention in them, with dropout"}
    parts = []
    for word, what in told.items():
        found = [value for name, value in values.items() if name.endswith(word)]
        if found:
            parts.append(f"{_span(found, '{:.1f}')} for {what}")
    ratio = ", ".join(parts) or "not known from this run"
    return wrapped(
        f"Inside PyTorch models, with `accelerate(model)`, the ratio is {ratio} (`docs/torch.md` "
        f"has the table). {origin(results['torch'])}"
    )


def targets(results: Mapping[str, Results], face: str = "numpy") -> str:
    """Tell every target of a face: wanted, reached, verdict, and why one was not measured."""
    found = results[face]
    forms = {target.name: target.form for target in FACES[face]}
    rows = []
    for each in found["targets"]:
        form, bound, value = forms[each["name"]], each["bound"], each["value"]
        sign = "≤" if each["at_most"] else "≥"
        wanted = NOTHING if bound is None else f"{sign} {form.format(bound)}"
        quiet = _quiet(each)
        reached = form.format(value) if value is not None and quiet else NOTHING
        verdict = each["verdict"] if value is None or quiet else BUSY
        if value is None and each["note"]:
            verdict += f": {each['note']}"
        rows.append([f"`{each['name']}`", each["what"], wanted, reached, verdict])
    heading = ["target", "what", "wanted", "reached", "verdict"]
    return "\n\n".join([origin(found), table(heading, rows), *_busy(rows)])


def peers(results: Mapping[str, Results]) -> str:
    """Tell the time of every other over ours in bfloat16, in plain inference."""
    cells = {
        tuple(cell["shape"].values()): cell
        for cell in results["half"]["cells"]
        if cell["mode"] == "infer"
    }
    names = dict.fromkeys(name for cell in cells.values() for name in cell["seconds"])
    others = [name for name in names if name != OURS]
    rows = []
    for shape in SHAPES:
        size = (shape.batch, shape.length, shape.embed_dim, shape.num_heads)
        if size in cells:
            rows.append([str(shape), *(_peer(cells[size], name) for name in others)])
    missing = {name: why for cell in cells.values() for name, why in cell["absent"].items()}
    told = ", ".join(f"{name} ({why})" for name, why in missing.items())
    closing = [wrapped(f"Did not run everywhere: {told}.")] if told else []
    return "\n\n".join([table(["(N, L, E, H)", *others], rows), *closing])


def scaling(results: Mapping[str, Results]) -> str:
    """Tell time and memory of a training step by length."""
    found = results["scaling"]
    machine, rows = found["machine"], []
    for each in found["lengths"]:
        one, every = (each["seconds"][name] for name in ("one", "all"))
        quiet = each["granted_processor_time"] >= QUIET
        times = [f"{1e3 * every:.0f} ms", f"{1e3 * one:.0f} ms", f"{one / every:.2f}"]
        memory = f"{each['memory'] / 1e6:.0f} MB", f"{each['memory'] / each['input']:.1f}"
        rows.append([f"{each['length']:,}", *(times if quiet else [BUSY] * 3), *memory])
    threads = machine["threads"]
    heading = [
        *("L", f"{threads} threads", "1 thread", "times faster"),
        *("memory", "times the input"),
    ]
    where = f"{machine['processor']}, {machine['isa']}, float32; {machine['date'][:10]}."
    return "\n\n".join([where, table(heading, rows), *_busy(rows)])


REGIONS: dict[str, Callable[[Mapping[str, Results]], str]] = {
    "grid": grid,
    "models": models,
    "in-models": in_models,
    "targets": targets,
    "half": lambda results: targets(results, "half"),
    "half-peers": peers,
    "modern": lambda results: targets(results, "modern"),
    "jax": lambda results: targets(results, "jax"),
    "scaling": scaling,
    "plan": lambda results: plans.checked(results["plan"]),
    "accuracy": lambda results: page.summary(results["accuracy"]),
    "accuracy-relative": lambda results: page.errors(results["accuracy"], RELATIVE),
    "accuracy-maximum": lambda results: page.errors(results["accuracy"], MAXIMUM),
}


def rewritten(text: str, results: Mapping[str, Results]) -> str:
    """Return a document with its regions made anew.

    Raises
    ------
    ValueError
        If a region has a name that is none of ours.
    """

    def write(match: re.Match[str]) -> str:
        name = match[2]
        if name not in REGIONS:
            raise ValueError(f"no region is called {name!r}; there are {', '.join(REGIONS)}")
        return f"{match[1]}{REGIONS[name](results)}\n{match[4]}"

    return REGION.sub(write, text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the documents, or check them; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if it would")
    options = parser.parse_args(arguments)
    results = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in FILES}
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        text = path.read_text()
        new = rewritten(text, results)
        if new != text:
            stale.append(name)
            if not options.check:
                path.write_text(new)
    if stale and options.check:
        print(
            f"{', '.join(stale)}: not what benchmarks/results says; python -m benchmarks.tables",
            file=sys.stderr,
        )
        return 1
    return 0


def _values(found: Results) -> dict[str, float]:
    """Values of the targets by name: those that were measured on a quiet machine."""
    return {
        each["name"]: each["value"]
        for each in found["targets"]
        if each["value"] is not None and _quiet(each)
    }


def _quiet(target: Results) -> bool:
    """Whether nothing disturbed a target: more than the limit says that the limit was."""
    beyond = re.match(r"share-|avx2-", target["name"]) and (target["value"] or 0) > 1
    return bool(target["granted_processor_time"] >= QUIET and not beyond)


def _written(found: Results) -> dict[str, str]:
    """Values of the targets by name, as a table has them."""
    return {
        each["name"]: _ratio(each["value"], each["granted_processor_time"])
        for each in found["targets"]
    }


def _cell(cell: Results) -> str:
    return _ratio(cell["torch_over_ours"], cell["granted_processor_time"])


def _peer(cell: Results, name: str) -> str:
    seconds = cell["seconds"]
    if name not in seconds:
        return NOTHING
    ratio = seconds[name]["median"] / seconds[OURS]["median"]
    return BUSY if cell["granted_processor_time"] < QUIET else f"{ratio:.2f}"


def _ratio(value: float | None, granted: float) -> str:
    """Write a ratio; a busy machine's is not told, for it can be anything."""
    if value is None:
        return NOTHING
    return BUSY if granted < QUIET else f"{value:.1f}"


def _busy(rows: Sequence[Sequence[str]]) -> list[str]:
    """Say what the word means, under a table that has it."""
    return [BUSY_MEANS] if any(BUSY in row for row in rows) else []


def _span(values: Sequence[float], form: str) -> str:
    ends = dict.fromkeys(form.format(value) for value in (min(values), max(values)))
    return " to ".join(ends)


def _model(work: Workload) -> str:
    layers = f"{work.layers} + {work.layers}" if work.model == "transformer" else f"{work.layers}"
    return f"{MODELS[work.model]}, {layers} × {work.embed_dim}, ({work.batch}, {work.length})"


if __name__ == "__main__":
    raise SystemExit(main())
