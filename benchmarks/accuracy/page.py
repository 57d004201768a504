"""The tables of ``docs/accuracy.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import geometric_mean

from benchmarks.accuracy.cases import DTYPES, FUNCTIONS, TENSORS
from benchmarks.accuracy.verdict import MAXIMUM, METRICS, RELATIVE, Document, Pair, pairs
from benchmarks.markdown import table, wrapped

NONE = "–"


def summary(found: Document) -> str:
    """Tell what was measured on what, each dtype in a line, and where ours is larger."""
    lines = [_summary_line(pairs(found), dtype, name) for dtype in DTYPES for name in FUNCTIONS]
    heading = ["dtype", "of", "ours", "PyTorch's", "ours / PyTorch's", "at most", "of the maxima"]
    rows = [line for line in lines if line is not None]
    return "\n\n".join([_origin(found), table([*heading, "larger"], rows), _larger(found)])


def errors(found: Document, metric: str) -> str:
    """Tell every error of one metric, ours and PyTorch's: a table for each dtype and function."""
    told = [pair for pair in pairs(found) if pair.metric == metric]
    parts = []
    for dtype in DTYPES:
        for function, called in FUNCTIONS.items():
            chosen = [pair for pair in told if (pair.dtype, pair.function) == (dtype, function)]
            if chosen:
                parts += [f"`{called}`, {dtype}:", _table(chosen, TENSORS[function])]
    return "\n\n".join(parts)


def _origin(found: Document) -> str:
    machine, cases = found["machine"], found["cases"]
    apart = max(case["references_apart"] for case in cases)
    instructions = ", ".join(machine["instructions"]) or "instructions not told"
    return wrapped(
        f"{machine['processor']} ({instructions}); "
        f"our kernel set: {machine['isa']}; PyTorch {machine['versions']['torch']}; "
        f"{machine['threads']} threads; {machine['date'][:10]}. "
        f"The two float64 results are at most {_number(apart)} apart."
    )


def _summary_line(told: Sequence[Pair], dtype: str, function: str) -> list[str] | None:
    chosen = [pair for pair in told if (pair.dtype, pair.function) == (dtype, function)]
    if not chosen:
        return None
    of = {metric: [pair for pair in chosen if pair.metric == metric] for metric in METRICS}
    ours, theirs, ratio = (
        _mean([getattr(pair, name) for pair in of[RELATIVE]])
        for name in ("ours", "theirs", "ratio")
    )
    larger = sum(pair.larger for pair in chosen)
    return [
        dtype,
        f"`{FUNCTIONS[function]}`",
        NONE if ours is None else _number(ours),
        NONE if theirs is None else _number(theirs),
        NONE if ratio is None else f"{ratio:.2f}",
        *(f"{max(pair.ratio for pair in of[metric]):.2f}" for metric in (RELATIVE, MAXIMUM)),
        f"{larger} of {len(chosen)}",
    ]


def _larger(found: Document) -> str:
    larger = [pair for pair in pairs(found) if pair.larger]
    if not larger:
        return "Ours is larger nowhere."
    counts = {dtype: sum(pair.dtype == dtype for pair in larger) for dtype in DTYPES}
    told = ", ".join(f"{count} in {dtype}" for dtype, count in counts.items() if count)
    worst = max(larger, key=lambda pair: pair.ratio)
    return wrapped(f"Ours is larger in {told}; bold below. The largest ratio: {worst}.")


def _table(told: Sequence[Pair], tensors: Sequence[str]) -> str:
    rows: dict[tuple[int, int], dict[str, str]] = {}
    for pair in told:
        rows.setdefault((pair.length, pair.logits), {})[pair.tensor] = _cell(pair)
    heading = ["length", "logits", *(f"`{name}`" for name in tensors)]
    return table(heading, [_row(key, cells, tensors) for key, cells in rows.items()])


def _row(key: tuple[int, int], cells: Mapping[str, str], tensors: Sequence[str]) -> list[str]:
    return [*map(str, key), *(cells.get(name, NONE) for name in tensors)]


def _cell(pair: Pair) -> str:
    text = f"{_number(pair.ours)} / {_number(pair.theirs)}"
    return f"**{text}**" if pair.larger else text


def _mean(values: Sequence[float]) -> float | None:
    """Geometric mean of those that are not zero; None without any."""
    found = [value for value in values if value]
    return geometric_mean(found) if found else None


def _number(value: float) -> str:
    """Write two digits and a power of ten.

    Examples
    --------
    >>> _number(4.14e-7), _number(0.0), _number(float("inf"))
    ('4.1e-7', '0', 'inf')
    """
    return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e") if value else "0"
