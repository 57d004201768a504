"""Train a language model on a text that processes share: what `long_context/train.py` does."""

import runpy
import sys
from pathlib import Path

folder = Path(__file__).resolve().with_suffix("")
sys.path[0] = str(folder)
try:
    runpy.run_path(str(folder / "train.py"), run_name="__main__")
except ModuleNotFoundError as why:
    raise SystemExit(f'{why}: pip install "multihead[torch,demo]"') from None
