"""``multihead plan``: what attention over several machines would cost, and how to share it best."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import multihead as mh
from multihead.cli.arguments import amount, count
from multihead.cli.console import Cell, Console
from multihead.cli.rates import attention, carrying, copying
from multihead.distributed.cost import Cost, cost
from multihead.distributed.work import Cluster, Scheme, Work, schemes

DESCRIPTION = (
    "Predict time, bytes sent and memory of one attention whose sequence is shared by ranks, for "
    "every scheme that fits: ring attention, all-to-all attention over heads, and both together. "
    "How fast a rank computes is measured here in a few seconds, or said."
)
ITEMSIZES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
GIGA = 1e9


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add = parser.add_argument
    add("--length", type=count, required=True, metavar="L", help="tokens of the whole sequence")
    add("--heads", type=count, required=True, metavar="H", help="heads of queries")
    add("--key-heads", type=count, metavar="Hk", help="heads of keys; default: as many")
    add("--head-dim", type=count, default=64, metavar="D", help="default 64")
    add("--batch", type=count, default=1, metavar="N", help="sequences; default 1")
    add("--layers", type=count, default=1, metavar="N", help="layers, one after the other")
    add("--ranks", type=count, required=True, metavar="P", help="processes, one on each machine")
    add(
        "--bandwidth",
        type=amount,
        required=True,
        metavar="GB/s",
        help="gigabytes per second out of a rank, and as many into it",
    )
    add("--latency", type=amount, default=50.0, metavar="US", help="of a message; default 50")
    add("--causal", action="store_true", help="queries see the keys before them alone")
    add("--forward", action="store_true", help="without the backward pass")
    add("--dtype", choices=ITEMSIZES, default="float32", metavar="DTYPE", help="default float32")
    add(
        "--rate",
        type=amount,
        nargs=2,
        metavar=("FORWARD", "BACKWARD"),
        help="billions of operations per second on a rank; default: measured here",
    )
    add(
        "--handling",
        type=amount,
        nargs=2,
        metavar=("COPYING", "CARRYING"),
        help="gigabytes per second on a rank that NumPy reads and writes, and that its processors "
        "send and receive at most; default: measured here",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """Predict, and write it."""
    key_heads = options.key_heads or options.heads
    if options.heads % key_heads:
        options.parser.error(
            f"argument --key-heads: expected a divisor of {options.heads} heads, got {key_heads}"
        )
    work = Work(
        options.length,
        options.batch,
        options.heads,
        key_heads,
        options.head_dim,
        options.causal,
        ITEMSIZES[options.dtype],
        not options.forward,
    )
    given = [x and [each * GIGA for each in x] for x in (options.rate, options.handling)]
    operations = given[0] or attention(options.head_dim, options.dtype)
    handling = given[1] or (copying(options.head_dim), mh.get_num_threads() * carrying())
    cluster = Cluster(
        options.ranks,
        options.bandwidth * GIGA,
        options.latency * 1e-6,
        *operations,
        *handling,
    )
    found = {scheme: cost(work, cluster, scheme) for scheme in schemes(work, options.ranks)}
    best = min(found, key=lambda scheme: found[scheme].seconds)
    rows = [_figures(scheme, each, options.layers) for scheme, each in found.items()]
    document = {
        "work": work._asdict() | {"layers": options.layers, "dtype": options.dtype},
        "cluster": cluster._asdict() | {"rates_measured": given[0] is None},
        "schemes": rows,
        "best": str(best),
    }
    if console.document(options, document):
        _write(console, document, list(found), best)
    return 0


def _figures(scheme: Scheme, each: Cost, layers: int) -> dict[str, Any]:
    """Say what a scheme costs in all layers; memory as each keeps what its backward needs."""
    return {
        "scheme": str(scheme),
        "ring": scheme.ring,
        "heads": scheme.heads,
        "seconds": each.seconds * layers,
        "computing": each.computing * layers,
        "handling": each.handling * layers,
        "waiting": each.waiting * layers,
        "bytes_sent": each.sent * layers,
        "memory": each.kept * layers + each.passing,
    }


def _write(
    console: Console, document: dict[str, Any], found: Sequence[Scheme], best: Scheme
) -> None:
    work, cluster = document["work"], document["cluster"]
    whole = "forward and backward" if work["training"] else "forward"
    console.say(
        f"{work['length']} tokens, {work['batch']} x {work['heads']} heads "
        f"({work['key_heads']} of keys) of {work['head_dim']}, {work['dtype']}"
        f"{', causal' if work['causal'] else ''}, {work['layers']} layers, {whole}, "
        f"on {cluster['ranks']} ranks"
    )
    console.line()
    rows: list[list[Cell]] = [["each rank", "seconds", "waiting", "sent", "memory"]]
    for scheme, row in zip(found, document["schemes"], strict=True):
        style = "bold green" if scheme == best else ""
        texts = (
            row["scheme"],
            f"{float(format(row['seconds'], '.3g')):,g}",
            f"{100 * row['waiting'] / row['seconds']:.0f} %",
            _bytes(row["bytes_sent"]),
            _bytes(row["memory"]),
        )
        rows.append([(text, style) for text in texts])
    console.table(rows, right=(1, 2, 3, 4))
    console.line()
    least = document["schemes"][found.index(best)]
    computing, handling = (
        f"{100 * least[part] / least['seconds']:.0f} %" for part in ("computing", "handling")
    )
    console.say(
        f"best: {best}; {computing} of its time is computing, {handling} merging, copying and "
        "carrying messages"
    )
    how = f"measured here, {mh.get_num_threads()} threads" if cluster["rates_measured"] else "given"
    console.say(
        f"{cluster['forward'] / GIGA:.0f} billion operations per second forward and "
        f"{cluster['backward'] / GIGA:.0f} backward ({how}); "
        f"{cluster['copying'] / GIGA:.2g} GB/s copied and {cluster['carrying'] / GIGA:.2g} carried "
        f"at most; {cluster['bandwidth'] / GIGA:g} GB/s and {cluster['latency'] * 1e6:g} us a "
        "message. "
        "Attention alone: projections and all else of a model are not in it."
    )


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            break
        number /= 1000
    return f"{number:.3g} {unit}"
