"""Train a small language model and let it write: what `tiny_llama/train.py` does."""

import runpy
import sys
from pathlib import Path

folder = Path(__file__).resolve().with_suffix("")
sys.path[0] = str(folder)
try:
    runpy.run_path(str(folder / "train.py"), run_name="__main__")
except ModuleNotFoundError as why:
    raise SystemExit(f'{why}: pip install "multihead[demo]"') from None
