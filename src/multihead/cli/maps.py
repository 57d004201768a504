"""``multihead maps``: where the heads of an encoder look in a text, as a page or a picture."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from multihead.arrays import Array
from multihead.checks import integer
from multihead.cli.console import Console

DESCRIPTION = (
    "Run a BERT encoder on a text and write where its heads look: a page for a browser that needs "
    "no network (--html), a picture of one head or of a layer's (--picture), or numbers (--json)."
)
_MODEL = """folder with config.json, model.safetensors and tokenizer.json, or the name of an
installed package that has one"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what the command takes to a parser."""
    parser.add_argument("model", metavar="MODEL", help=_MODEL)
    parser.add_argument("text", metavar="TEXT", help="a sentence or a few")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page here")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="draw one head, or with --layer alone all of a layer, as .svg, .png or .pdf",
    )
    parser.add_argument("--layer", type=int, metavar="N", help="of the picture, from 1")
    parser.add_argument("--head", type=int, metavar="N", help="of the picture, from 1")


def run(options: argparse.Namespace, console: Console) -> int:
    """Run the command; return its exit status."""
    try:
        _check(options)
        _write(options, console)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"multihead maps: {error}", file=sys.stderr)
        return 2
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.html is None and options.picture is None and options.json is None:
        raise ValueError("nothing to write: name a file with --html or --picture, or say --json")
    if options.picture is None and (options.layer, options.head) != (None, None):
        raise ValueError("--layer and --head choose a picture: name a file with --picture")
    if options.picture is not None and options.layer is None:
        raise ValueError("--picture needs a layer: --layer 1, with --head 1 for one head of it")
    for path in filter(None, (options.html, options.picture)):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {path.parent}")


def _write(options: argparse.Namespace, console: Console) -> None:
    from multihead.maps.encoder import BertEncoder

    tokens, weights = BertEncoder(options.model)(options.text)
    layers, heads = weights.shape[:2]
    drawn = None if options.picture is None else _picture(options, tokens, weights)
    written = {}
    if options.html is not None:
        from multihead.maps.page import page

        name = os.path.basename(os.path.normpath(options.model))
        note = f"{name}: {layers} layers of {heads} heads, {len(tokens)} tokens."
        text = page(weights, tokens, note=note)
        options.html.write_text(text, encoding="utf-8")
        written[str(options.html)] = f"{len(tokens)} tokens, {len(text) / 1e3:.0f} kB"
    if drawn is not None:
        from multihead.plot import save

        save(drawn, options.picture)
        written[str(options.picture)] = _chosen(options)
    # (layers, heads, queries, keys)
    document = {"tokens": tokens, "weights": weights.round(6).tolist(), "files": [*written]}
    if console.document(options, document):
        for file, what in written.items():
            console.line(f"{file}: {what}")


def _chosen(options: argparse.Namespace) -> str:
    head = "all heads" if options.head is None else f"head {options.head}"
    return f"layer {options.layer}, {head}"


def _picture(options: argparse.Namespace, tokens: list[str], weights: Array) -> Any:
    from multihead.plot import attention_map, head_grid

    layers, heads = weights.shape[:2]
    layer = weights[integer("--layer", options.layer, 1, layers + 1) - 1]
    if options.head is None:
        return head_grid(layer, tokens, title=f"layer {options.layer}")
    head = layer[integer("--head", options.head, 1, heads + 1) - 1]
    return attention_map(head, tokens, title=_chosen(options))
