"""Whole calls drawn from bytes, judged: right numbers, or a clean error that changes nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = str(ROOT / "tests")
if TESTS not in sys.path:  # its draws, oracles and tolerances serve here too
    sys.path.insert(0, TESTS)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MULTIHEAD_NUM_THREADS", "2")

PYTHON = {  # name: module, in the order in which they run
    "layer": "fuzz.layer",
    "functions": "fuzz.functions",
    "ragged": "fuzz.ragged",
    "state_dicts": "fuzz.state_dicts",
    "checkpoints": "fuzz.checkpoints",
    "kv_caches": "fuzz.kv_caches",
    "torch_module": "fuzz.torch_module",
    "torch_functions": "fuzz.torch_functions",
}
NATIVE = ("bnns", "bnns_shipped")
