"""``multihead maps``: where the heads of an encoder look in a text, as a page or a picture."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from multihead.arrays import Array
from multihead.checks import integer

DESCRIPTION = """Run a BERT encoder on a text and write where its heads look: a page for a browser
that needs no network (--html), a picture of one head (--picture), or both."""
_MODEL = """folder with config.json, model.safetensors and tokenizer.json, or the name of an
installed package that has one"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(options: argparse.Namespace) -> int:
    """Run the command; return its exit status."""
    try:
        _check(options)
        _write(options)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"multihead maps: {error}", file=sys.stderr)
        return 2
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.html is None and options.picture is None:
        raise ValueError("nothing to write: name a file with --html or --picture")
    if options.picture is None and (options.layer, options.head) != (None, None):
        raise ValueError("--layer and --head choose a picture: name a file with --picture")
    if options.picture is not None and options.layer is None:
        raise ValueError("--picture needs a layer: --layer 1, with --head 1 for one head of it")
    for path in filter(None, (options.html, options.picture)):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {path.parent}")


def _write(options: argparse.Namespace) -> None:
    from multihead.maps.encoder import BertEncoder

    tokens, weights = BertEncoder(options.model)(options.text)
    drawn = None if options.picture is None else _picture(options, tokens, weights)
    if options.html is not None:
        from multihead.maps.page import page

        layers, heads = weights.shape[:2]
        name = os.path.basename(os.path.normpath(options.model))
        note = f"{name}: {layers} layers of {heads} heads, {len(tokens)} tokens."
        text = page(weights, tokens, note=note)
        options.html.write_text(text, encoding="utf-8")
        print(f"{options.html}: {len(tokens)} tokens, {len(text) / 1e6:.1f} MB")
    if drawn is not None:
        from multihead.plot import save

        save(drawn, options.picture)
        print(f"{options.picture}: {_chosen(options)}")


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
