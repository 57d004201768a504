"""The command: search, or measure.

python examples/sentence_embeddings.py --query "undo what I did to a list" --top 5
python examples/sentence_embeddings.py --bench
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from sentences.documentation import first_sentences
from sentences.encoder import Encoder
from sentences.model_files import ModelFiles
from sentences.processor import cpu
from sentences.search import Hit, Index

QUERIES = (
    "remove indentation from text",
    "how far apart two points are",
    "run another program and read what it prints",
)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Search Python's documentation by meaning.")
    parser.add_argument("--query", action="append", metavar="TEXT", help="may be given repeatedly")
    parser.add_argument("--top", type=int, default=3, metavar="K", help="answers to show")
    parser.add_argument("--threads", type=int, metavar="N", help="all that there are by default")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="another model's files")
    parser.add_argument("--bench", action="store_true", help="measure beside sentence-transformers")
    options = parser.parse_args()
    for name in ("top", "threads"):
        given = getattr(options, name)
        if given is not None and given < 1:
            parser.error(f"--{name}: expected at least 1, got {given}")
    return options


def show(query: str, hits: Sequence[Hit]) -> None:
    """Print the answers to a query: a table where rich is installed, else lines."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(f"\n{query}")
        for hit in hits:
            print(f"  {hit.cosine:.2f}  {hit.name}: {hit.text}")
        return
    table = Table(title=Text(query), title_justify="left", box=None, show_header=False)
    for style in ("cyan", "bold", ""):
        table.add_column(style=style)
    for hit in hits:
        table.add_row(f"{hit.cosine:.2f}", Text(hit.name), Text(hit.text))
    Console().print("", table)


def main() -> None:
    """Do what the command line says."""
    options = parse()
    try:
        files = ModelFiles.load(options.model)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise SystemExit(str(error)) from None
    encoder = Encoder(files, options.threads)
    if options.bench:
        from sentences.beside_torch import measure

        measure(files, encoder)
        return
    started = time.perf_counter()
    index = Index(encoder, first_sentences())
    seconds = time.perf_counter() - started
    count = len(index.named)
    print(f"{count} sentences in {seconds:.1f} s: {count / seconds:.0f} a second", end="")
    print(f", {encoder.threads} threads, {cpu()}")
    for query in options.query or QUERIES:
        show(query, index.search(query, options.top))
