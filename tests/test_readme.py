"""The README's program in C compiles, and its filter computes what the layer does."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from ctypes import POINTER, c_float, c_void_p
from pathlib import Path

import numpy as np

import multihead as mh
from multihead import bnns

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
T, E, H = 100, 512, 8


def compiled(tmp_path: Path) -> ctypes.CDLL:
    """Make a library of the block."""
    (block,) = re.findall(r"^```c\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    (tmp_path / "program.c").write_text(block)
    config = [sys.executable, "-m", "multihead", "config", "--cflags", "--libs"]
    flags = subprocess.check_output(config, text=True, timeout=60).split()
    command = ["cc", "-std=c99", "-Wall", "-Werror", "-shared", "-fPIC", "program.c", *flags]
    subprocess.run([*command, "-o", "program.so"], cwd=tmp_path, check=True, timeout=60)
    return ctypes.CDLL(str(tmp_path / "program.so"))


def test_the_program_in_c_attends(tmp_path: Path, rng: np.random.Generator) -> None:
    layer = mh.MultiheadAttention(E, H, batch_first=True, seed=0)
    state = layer.parameters()
    state["in_proj_bias"][:] = rng.standard_normal(3 * E)
    state["out_proj.bias"][:] = rng.standard_normal(E)
    weights = [*np.split(state["in_proj_weight"], 3), state["out_proj.weight"]]
    biases = [*np.split(state["in_proj_bias"], 3), state["out_proj.bias"]]
    four = POINTER(c_float) * 4
    make = compiled(tmp_path).attention
    make.restype, make.argtypes = c_void_p, [four, four]
    w, b = (four(*(x.ctypes.data_as(POINTER(c_float)) for x in of)) for of in (weights, biases))
    made = make(w, b)
    assert made is not None, bnns.last_error()
    x = rng.standard_normal((2, T, E)).astype(np.float32)
    out, none = np.empty_like(x), (None, None, None, None, None)
    each = x, T * E
    status = bnns.BNNSApplyMultiheadAttention(
        made, 2, *each, *each, None, 0, *each, out, T * E, *none
    )
    bnns.BNNSFilterDestroy(made)
    assert status == 0
    expected, _ = layer.eval()(x, x, x, need_weights=False)
    assert np.abs(out - expected).max() < 1e-5
